"""The site that a method asks for, on one denoiser."""

from __future__ import annotations

from torch import nn

from ..predictors import Fitted
from .anatomy import Anatomy
from .gated import GatedSite
from .levels import fitted_site
from .modules import find_units, unit_kinds
from .partial import PartialOutputSite
from .rate import RateSite
from .recipe import Recipe
from .sites import BodyOutput, OutputSite, Site
from .sparse import sparse_site
from .tokens import TokenSite
from .units import UnitSite


def make_site(model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> Site:
    """The site that a recipe asks for, on one denoiser.

    Raises:
        UnsupportedModelError: the denoiser does not have it.
    """
    if recipe.signal == "rate":
        return RateSite(anatomy, recipe)
    if recipe.signal is not None:
        return GatedSite(model, anatomy, recipe)
    if isinstance(recipe.predictor, Fitted):
        return fitted_site(model, anatomy, recipe)
    if recipe.site == "output" and recipe.table is not None:
        return sparse_site(model, anatomy, find_units(model, "module", recipe.kinds), recipe)
    if recipe.site == "output" and recipe.selector is not None:
        return PartialOutputSite(model, anatomy, find_units(model, "module", unit_kinds("module")), recipe)
    if recipe.site == "output":
        return OutputSite(anatomy, recipe)
    if recipe.site == "body":
        return BodyOutput(model, recipe)
    if recipe.site == "token":
        return TokenSite(model, find_units(model, "module", recipe.kinds), recipe)
    return UnitSite(find_units(model, recipe.site, recipe.kinds), recipe)
