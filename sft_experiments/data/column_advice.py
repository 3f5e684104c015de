"""When no row of a split has a column that the format needs: which setting is wrong, and what would fit."""

from collections.abc import Iterable

from sft_experiments.data.formats import REQUIRED
from sft_experiments.errors import DataError
from sft_experiments.schema import DataSource, SourceConfig

MAX_NAMED = 12  # columns that are listed


def refuse_missing_columns(source: SourceConfig, split: str, columns: Iterable[str], key: str = "dataset") -> None:
    """Raise ``DataError`` when none of ``columns``, all that were seen, is one that ``source`` must have."""
    seen = [str(column) for column in columns]
    missing = [field for field in REQUIRED[source.format] if source.columns.get(field, field) not in seen]
    if not missing:
        return
    wanted = ", ".join(repr(source.columns.get(field, field)) for field in missing)
    named = " ".join(f"{key}.columns.{field}=<column>" for field in missing)
    fitting = [format for format, required in REQUIRED.items() if {*required} <= {*seen}]
    option = "dataset=" if source.source is DataSource.files and key == "dataset" else f"{key}.format="
    other = "".join(f", or {option}{format.value}, which fits them" for format in fitting)
    more = ", ..." if len(seen) > MAX_NAMED else ""
    raise DataError(
        f"{split}: no row has a column {wanted}, which the format {source.format.value} needs; columns: "
        f"{', '.join(seen[:MAX_NAMED]) or 'none'}{more}; set {named}{other}"
    )
