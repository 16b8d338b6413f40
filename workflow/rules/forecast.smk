# What language models would be asked, and for how much, before anything is sent.


rule forecast:
    """Print requests, tokens and price per stage and model of what would be asked now; nothing is sent."""
    input:
        windows=explained_places("results/{model}/{source}/windows.parquet"),
        events=explained_places("results/{model}/{source}/heads/raw_events.parquet"),
        head_stats=explained_places("results/{model}/{source}/heads/head_stats.parquet"),
        test_items=(
            for_each("results/{model}/{source}/heads/judge/items.parquet") if ASKS_JUDGE else []
        ),
        latent_windows=asked_latents("results/{model}/{source}/windows.parquet"),
        latent_activations=asked_latents(f"{LATENTS}/activations.parquet"),
        latent_events=asked_latents(f"{LATENTS}/raw_events.parquet"),
        latent_items=(for_each_dictionary(f"{LATENTS}/judge/items.parquet") if ASKS_JUDGE else []),
    log:
        "logs/forecast/forecast.log",
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_window=50),
        runtime=minutes(60),
        gpu=0,
    params:
        places=forecast_places(),
        latent_places=forecast_latents(),
        openai=config["explain"]["openai"],
        max_heads=config["explain"]["max_heads"],
        judge=config["judge"],
        explainers=judged_explainers(),
        llm=config["llm"],
        seed=config["seed"],
    script:
        "../scripts/forecast.py"


rule forecast_resources:
    """Print processor and GPU hours, memory and disk of every rule for this configuration; nothing else is run."""
    log:
        "logs/forecast_resources/forecast.log",
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(300),
        runtime=minutes(5),
        gpu=0,
    params:
        settings=dict(config),
        folders={name: model_folder(Names(model=name)) for name in MODELS},
        code=script_digest("forecast_resources"),
    script:
        "../scripts/forecast_resources.py"
