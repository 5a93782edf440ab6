"""A link's query parameters, as values of the page's controls. ``assets/link.js`` writes such links."""

from __future__ import annotations

from collections.abc import Mapping

from ..components import Outputs
from ..limits import NO_RIVAL, Limits, parse_request
from ..offers import AUTOMATIC, EMBEDDED, Offers
from .controls import defaults
from .method_controls import settings


def parse_link(offers: Offers, limits: Limits, parameters: Mapping[str, str]) -> Outputs:
    """The controls that a link sets, by component name; parameters that are none of the page's are left aside.

    Raises:
        UserError: a value is not one that a visitor could have set.
    """
    known = defaults()
    chosen = [parameters.get(name, known[name]) for name in ("method", "rival")]
    own = {name: [setting for setting in settings() if setting.method.name == name] for name in chosen}
    plain = known.keys() - {setting.key for setting in settings()} | {"prompt"}
    given = {name: parameters[name] for name in plain if name in parameters}
    wished = [
        {setting.field.name: parameters[setting.key] for setting in own[name] if setting.key in parameters}
        for name in chosen
    ]
    if not given and not any(wished):
        return {}
    wishes = {"prompt": "none", **given, "settings": wished[0], "rival_settings": wished[1]}
    request = parse_request(offers, **wishes, limits=limits)
    budget = request.budget
    return {
        **({"prompt": request.prompt} if "prompt" in given else {}),
        **({"kl": budget.most} if budget and budget.of == "kl" else {}),
        **({"mlp_percent": round(100 * budget.most, 6)} if budget and budget.of == "mlp_share" else {}),
        "method": request.method.name,
        "rival": request.rival.name if request.rival else NO_RIVAL,
        "by": given.get("by", known["by"]),
        "model": request.model or EMBEDDED,
        "precision": request.precision or AUTOMATIC,
        "max_new_tokens": request.max_new_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        **{
            setting.key: setting.shown(value)
            for method in filter(None, (request.method, request.rival))
            for setting in own[method.name]
            if setting.key in parameters and (value := getattr(method, setting.field.name)) != ()
        },
    }
