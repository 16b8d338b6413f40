# Helpers of the rules about figures of a paper.
def figure_folders():
    """The folders of figures of every analysis that there is."""
    folders = [f"results/figures/{model}/circuits" for model in with_tasks()]
    for model, source in PLACES:
        place = f"results/figures/{model}/{source}"
        folders.append(f"{place}/heads")
        folders += [f"{place}/dictionaries"] if dictionaries_of(model, source) else []
        folders += [f"{place}/transcoders"] if transcoders_of(model, source) else []
    return folders


def captions_in(folder):
    """Param: the captions of figures that are there, by name, for the report of the engine; not compared."""

    def captions(wildcards, threads):
        path = Path(folder.format(**dict(wildcards.items())), "captions.json")
        if not path.exists():
            return {}
        texts = json.loads(path.read_text(encoding="utf-8"))
        # What means something in reStructuredText is shown as it is.
        return {name: re.sub(r"([\\*`|_])", r"\\\1", text) for name, text in texts.items()}

    return captions


def dictionary_files(file, among):
    """Input function: a file of those dictionaries of a model and source that are among others."""

    def files(wildcards):
        names = [n for n in dictionaries_of(wildcards.model, wildcards.source) if n in among]
        folder = f"results/{wildcards.model}/{wildcards.source}/dictionaries"
        return [f"{folder}/{name}/{file}" for name in names]

    return files


def latent_tables(file):
    """Input function: a file about the latents of each dictionary of a model and source."""

    def files(wildcards):
        names = dictionaries_of(wildcards.model, wildcards.source)
        return [f"results/{wildcards.model}/{wildcards.source}/latents/{n}/{file}" for n in names]

    return files


def transcoder_files(file):
    """Input function: a file of each transcoder of a model and source."""

    def files(wildcards):
        names = transcoders_of(wildcards.model, wildcards.source)
        return [
            f"results/{wildcards.model}/{wildcards.source}/transcoders/{n}/{file}" for n in names
        ]

    return files


def graph_files(ending):
    """Input function: a file of each graph of each transcoder of a model and source."""

    def files(wildcards):
        folder = f"results/{wildcards.model}/{wildcards.source}/transcoders"
        names = transcoders_of(wildcards.model, wildcards.source)
        return [
            f"{folder}/{name}/graphs/{graph}.{ending}"
            for name in names
            for graph in traced("graphs", wildcards.model, name)
        ]

    return files
