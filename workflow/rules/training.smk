# Retraining of the embedded models: nothing else depends on it.
EMBEDDED_MODELS = ["demo-4l", "demo-2l"]
EMBEDDED_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "metrics.json",
    "training.jsonl",
    "README.md",
]


rule retrain_demo_models:
    """Target: train the embedded models again, from the recipe that made the shipped ones."""
    input:
        expand("results/retrained/{model}/model.safetensors", model=EMBEDDED_MODELS),


rule train_demo_model:
    """Train one embedded model and measure its card."""
    input:
        recipe=repository_file("resources/models/recipe.yaml"),
    output:
        weights="results/retrained/{model}/model.safetensors",
        others=expand("results/retrained/{{model}}/{file}", file=EMBEDDED_FILES),
    log:
        "logs/train_demo_model/{model}.log",
    benchmark:
        "results/benchmarks/train_demo_model/{model}.tsv"
    wildcard_constraints:
        model="|".join(EMBEDDED_MODELS),
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=minutes(90),
        gpu=gpu_request,
    params:
        checkpoint="results/retrained/checkpoints/{model}.safetensors",
        prompts=256,
        device=config["device"],
        code=lib_digest(
            "corpus",
            "tasks",
            "models/attention_entropy.py",
            "models/muon.py",
            "models/training.py",
            "models/tokenizer_training.py",
        ),
    script:
        "../scripts/train_demo_model.py"
