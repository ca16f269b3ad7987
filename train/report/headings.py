"""How a table calls a metric."""


def heading_of(metric: str) -> str:
    """A metric of ratings as a heading: "CCC valence".

    >>> heading_of("rmse valence")
    'RMSE valence'
    """
    kind, _, dimension = metric.partition(" ")
    return f"{kind.upper()} {dimension}"
