"""A link's query parameters, as values of the page's controls. ``assets/link.js`` writes such links."""

from __future__ import annotations

from collections.abc import Mapping

from ..components import Outputs
from ..limits import Limits, checked
from ..offers import AUTOMATIC, EMBEDDED, Offers
from .controls import defaults
from .method_controls import settings


def opened(offers: Offers, limits: Limits, parameters: Mapping[str, str]) -> Outputs:
    """The controls that a link sets, by component name; parameters that are none of the page's are left aside.

    Raises:
        UserError: a value is not one that a visitor could have set.
    """
    known = defaults()
    own = [setting for setting in settings() if setting.method.name == parameters.get("method", known["method"])]
    plain = known.keys() - {setting.key for setting in settings()} | {"prompt"}
    given = {name: parameters[name] for name in plain if name in parameters}
    wished = {setting.field.name: parameters[setting.key] for setting in own if setting.key in parameters}
    if not given and not wished:
        return {}
    request = checked(offers, **{"prompt": "none", **given, "settings": wished}, limits=limits)
    budget = request.budget
    return {
        **({"prompt": request.prompt} if "prompt" in given else {}),
        **({"kl": budget.most} if budget and budget.of == "kl" else {}),
        **({"mlp_percent": round(100 * budget.most, 6)} if budget and budget.of == "mlp_share" else {}),
        "method": request.method,
        "by": given.get("by", known["by"]),
        "model": request.model or EMBEDDED,
        "precision": request.precision or AUTOMATIC,
        "max_new_tokens": request.max_new_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        **{
            setting.key: setting.shown(request.settings[setting.field.name])
            for setting in own
            if setting.field.name in request.settings
        },
    }
