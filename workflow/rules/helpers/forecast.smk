# Helpers of the rules about forecasts.
ASKS_EXPLAINER = "openai" in EXPLAINERS
ASKS_JUDGE = bool(config["judge"]["scorers"])


def explained_places(pattern):
    return for_each(pattern) if ASKS_EXPLAINER else []


def forecast_places():
    """Param: every model and source, with what the forecast needs to know beyond files."""
    return [
        {
            "name": f"{model}, {source}",
            "model": model_folder(Names(model=model, source=source)),
            "bos": config["models"][model]["bos"],
            "explanations": judged_explanations(Names(model=model, source=source)),
        }
        for model, source in PLACES
    ]


def asked_latents(pattern):
    return for_each_dictionary(pattern) if ASKS_EXPLAINER else []


def forecast_latents():
    """Param: every dictionary, as `forecast_places`."""
    places = []
    for model, source, dictionary in latent_places():
        names = Names(model=model, source=source, dictionary=dictionary)
        explained = [
            f"results/{model}/{source}/latents/{dictionary}/explanations/{name}.jsonl"
            for name in judged_explainers()
        ]
        places.append(
            {
                "name": f"{model}, {source}, {dictionary}",
                "model": model_folder(names),
                "bos": config["models"][model]["bos"],
                "explanations": explained,
            }
        )
    return places
