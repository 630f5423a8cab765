"""Pictures of figures: plain rows and arrays in, SVG or PNG bytes out. matplotlib is loaded when one is drawn."""

from interp.plots.comparison import comparison_plot
from interp.plots.density import density_plot
from interp.plots.files import pictures
from interp.plots.pareto import front, pareto_plot

__all__ = ["comparison_plot", "density_plot", "front", "pareto_plot", "pictures"]
