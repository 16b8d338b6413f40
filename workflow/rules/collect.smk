# Named targets; no work is done here.


rule heads:
    """Explained, scored and clustered attention heads as tables and text."""
    input:
        for_each(
            "results/{model}/{source}/heads/report.md",
            "results/{model}/{source}/heads/summary.csv",
        ),


rule figures:
    """The figures of a paper with their data and captions, for every analysis and model."""
    input:
        figure_folders(),


rule atlas:
    """The pages in which everything is looked at together: results/report/atlas/index.html."""
    input:
        "results/report/atlas",


rule report_all:
    """The atlas and the HTML report with its index."""
    input:
        "results/report/index.html",


rule circuits:
    """Circuits of every task for every model: patching, roles, lenses, nodes, edges, all tasks compared, and the pages."""
    input:
        circuit_files(),
        circuit_pages(),


rule prompts:
    """Clean and corrupted prompts of every task in the configuration, for every model."""
    input:
        prompt_files(),


rule dictionaries:
    """Sparse autoencoders and transcoders, trained or fetched, and measured."""
    input:
        dictionary_results(),


rule latents:
    """Explained and scored latents of all dictionaries as tables and text."""
    input:
        for_each_dictionary(f"{LATENTS}/report.md", f"{LATENTS}/summary.csv"),


rule transcoder:
    """Cross-layer transcoders, measured, the attribution graphs that are drawn with them, and their pages."""
    input:
        transcoder_results(),


rule sweeps:
    """Transcoders over a range of sparsity, CLT beside transcoders for each layer; what `sweeps:` names."""
    input:
        sweep_results(),
