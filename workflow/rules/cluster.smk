# Whether a cluster is fit for a run.


rule doctor:
    """Check SLURM, its settings and one trial job before a run; makes nothing."""
    log:
        "logs/doctor/doctor.log",
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(300),
        runtime=minutes(10),
        gpu=0,
    params:
        folder=str(Path.cwd()),
        trial_seconds=300,
        latency_seconds=60,
    script:
        "../scripts/doctor.py"
