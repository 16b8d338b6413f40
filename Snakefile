# mechatlas: from a language model and a text corpus to a tested atlas of the model's insides.
# Run: snakemake --cores N --resources gpu=1    Targets: workflow/rules/collect.smk    Keys: config/README.md
from snakemake.utils import min_version

min_version("9.19")


# A working directory may bring its own config/config.yaml; without one the embedded default applies.
DEFAULT_CONFIG = "config/config.yaml"
if not os.path.exists(DEFAULT_CONFIG):
    DEFAULT_CONFIG = str(workflow.current_basedir.join(DEFAULT_CONFIG))


configfile: DEFAULT_CONFIG


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


rule all:
    """Everything, with a manifest of checksums (the default)."""
    input:
        "results/manifest.sha256",


include: "workflow/rules/collect.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/tasks.smk"
include: "workflow/rules/circuits.smk"
include: "workflow/rules/capture.smk"
include: "workflow/rules/dictionaries.smk"
include: "workflow/rules/transcoders.smk"
include: "workflow/rules/explain.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/latents.smk"
include: "workflow/rules/forecast.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/atlas.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/cluster.smk"


onstart:
    clean_up()
    check_language_models(workflow.dag)
    wake_for_jobs_alone()


onsuccess:
    clean_up()
    tell_report()


onerror:
    tell_failure(log)
