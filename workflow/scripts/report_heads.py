"""Write the findings about the heads of one model and source.

Inputs: explanations/{explainer}.jsonl of every explainer, scores.parquet, document_scores.parquet, clusters.json,
replacement.parquet, raw_events.parquet, windows.parquet, judge_scores.parquet if there is a judge, the model folder
(tokenizer only).
Outputs: report.md (to be read), summary.csv (one row per explanation), headline.json (numbers for the whole model, by
explainer), explanations.jsonl (the explanations of all explainers, without controls).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.figures.examples import WindowTexts
from mechatlas.figures.judge_page import judge_markdown
from mechatlas.figures.markdown import heads_report
from mechatlas.figures.results import head_table, read_results
from mechatlas.io import (
    provenance,
    read_provenance,
    read_table,
    write_json,
    write_jsonl,
    write_text,
)
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.score.overall import headlines


def main(
    explanations: Sequence[str],
    scores: str,
    document_scores: str,
    clusters: str,
    curve: str,
    events: str,
    windows: str,
    judge_scores: Sequence[str],
    model: str,
    bos: str | None,
    name: str,
    source: str,
    report: str,
    summary: str,
    headline: str,
    all_explanations: str,
) -> None:
    """Join the results and write the files."""
    results = read_results(explanations, scores, clusters, curve)
    made = read_provenance(scores)
    numbers = headlines(
        results.explanations,
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
    write_jsonl(all_explanations, results.explanations, facts)
    write_json(headline, numbers, facts)
    table = head_table(results)
    write_text(summary, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"), facts)
    windows_table = read_table(windows)
    texts = WindowTexts(windows_table, load_tokenizer(model, bos))
    text = heads_report(
        *(name, source, results, table, numbers, read_table(events), windows_table, texts),
        judged=judge_markdown(read_table(judge_scores[0]) if judge_scores else None),
    )
    write_text(report, text, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
