"""The HTML templates beside this module; all values are escaped."""

from jinja2 import Environment, PackageLoader

_LOADER = PackageLoader("personavlm_lib.study", ".")
_ENVIRONMENT = Environment(loader=_LOADER, autoescape=True, trim_blocks=True)


def render(name: str, **values: object) -> str:
    """The text of a template, such as "report.html.j2", with these values."""
    return _ENVIRONMENT.get_template(name).render(values)
