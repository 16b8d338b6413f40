"""Write the findings about the heads of one model and source.

Inputs: explanations.jsonl, scores.parquet, document_scores.parquet, clusters.json, replacement.parquet,
raw_events.parquet, windows.parquet, the model folder (tokenizer only).
Outputs: report.md (to be read), summary.csv (one row per head), headline.json (numbers for the whole model).
"""

from mechatlas.figures.examples import WindowTexts
from mechatlas.figures.markdown import heads_report
from mechatlas.figures.results import head_table, read_results
from mechatlas.io import provenance, read_provenance, read_table, write_json, write_text
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.score.overall import headline as overall_headline


def main(
    explanations: str,
    scores: str,
    document_scores: str,
    clusters: str,
    curve: str,
    events: str,
    windows: str,
    model: str,
    bos: str | None,
    name: str,
    source: str,
    report: str,
    summary: str,
    headline: str,
) -> None:
    """Join the results and write the three files."""
    results = read_results(explanations, scores, clusters, curve)
    made = read_provenance(scores)
    numbers = overall_headline(
        results.scores,
        results.curve,
        read_table(document_scores),
        **{key: made[key] for key in ("bootstrap", "confidence", "seed")},
    )
    facts = provenance(
        model=name,
        source=source,
        scores=made,
        clusters=read_provenance(clusters)["embedding_model"],
    )
    write_json(headline, numbers, facts)
    table = head_table(results)
    write_text(summary, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"), facts)
    windows_table = read_table(windows)
    texts = WindowTexts(windows_table, load_tokenizer(model, bos))
    text = heads_report(
        name, source, results, table, numbers, read_table(events), windows_table, texts
    )
    write_text(report, text, facts)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
