# Helpers: what is checked before and said after a run.
ASKING = ("ask_explainer", "ask_latents", "judge_heads", "judge_latents")


def check_language_models(dag):
    """Before the first job: will the endpoints answer that this run is going to ask?"""
    if not any(job.rule.name in ASKING for job in dag.needrun_jobs()):
        return
    # Not at the top, as this file is parsed in every job.
    from mechatlas.explain.llm.check import check_endpoints

    try:
        check_endpoints(config)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def clean_up():
    """Remove half-written files of jobs that were killed. The working directory is locked, so no other run writes."""
    for folder in ("results", "resources/downloads"):
        clean_temporaries(folder)


def wake_for_jobs_alone():
    """Let Snakemake look for ready jobs when one has ended, on this machine; it looks every second as well, once more
    for each job so far, to keep to a hundred starts a second (its pull request 3744). A limit of the user's stays.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if workflow.local_exec and limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def tell_report():
    for what, name in (("The atlas", "atlas/index.html"), ("The report", "index.html")):
        page = Path("results/report", name)
        if page.exists():
            print(f"{what}: {page.absolute()}", file=sys.stderr)


def tell_failure(log_files):
    for path in log_files:
        for line in reasons(Path(path).read_text(errors="replace")):
            print(line, file=sys.stderr)
    print(
        f"Failed. Each rule's own messages: {Path('logs').absolute()}/<rule>/ ; Snakemake's: {' '.join(log_files)}\n"
        "Run the same command again to continue. If it says that the directory is locked, run first:\n"
        "  snakemake --unlock",
        file=sys.stderr,
    )
