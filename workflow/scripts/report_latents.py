"""Write the findings about the latents of one model, source and dictionary.

Inputs: explanations/{explainer}.jsonl, scores.parquet, latent_stats.parquet, judge_scores.parquet if there is a judge,
scores.parquet of the random-weight model's dictionary if that control is wanted.
Outputs: report.md (to be read), summary.csv (one row per explanation), headline.json (numbers for the whole dictionary,
by explainer), explanations.jsonl (the explanations of all explainers, without controls).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.figures.judge_page import judge_markdown
from mechatlas.figures.latent_results import latent_table, latents_report
from mechatlas.io import (
    provenance,
    read_jsonl,
    read_provenance,
    read_table,
    write_json,
    write_jsonl,
    write_text,
)
from mechatlas.score.latents.overall import latent_headlines


def main(
    explanations: Sequence[str],
    scores: str,
    stats: str,
    judge_scores: Sequence[str],
    random_scores: Sequence[str],
    name: str,
    source: str,
    dictionary: str,
    report: str,
    summary: str,
    headline: str,
    all_explanations: str,
) -> None:
    """Join the results and write the files."""
    own = [r for path in explanations for r in read_jsonl(path) if r["control"] == "none"]
    found, statistics, made = read_table(scores), read_table(stats), read_provenance(scores)
    settings = {key: made[key] for key in ("bootstrap", "confidence", "seed")}
    other = read_table(random_scores[0]) if random_scores else None
    numbers = latent_headlines(own, found, statistics, settings, other)
    table = latent_table(own, found, statistics)
    facts = provenance(model=name, source=source, dictionary=dictionary, scores=made)
    write_jsonl(all_explanations, own, facts)
    write_json(headline, numbers, facts)
    write_text(summary, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"), facts)
    judged = judge_markdown(read_table(judge_scores[0]) if judge_scores else None)
    write_text(
        report, latents_report(name, source, dictionary, table, numbers, found, judged), facts
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
