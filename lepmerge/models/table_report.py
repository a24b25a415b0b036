"""The table report describes what a step did to one embedding table. Reports, model cards and the terminal show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lepmerge.tensors import Metrics, Reduction, Result


@dataclass(frozen=True)
class TableReport:
    """What a step did to one embedding table.

    operation: the step's `op`. table: `input_embeddings` or `output_embeddings`. method: the method, init or expression
    that made the rows; None if the operation offers no choice. rows: how a row was made → number of rows. operands, for
    operations that convert several models: model → how its rows were converted → number of rows. reductions: run later,
    when the plan is executed; they add metrics and warnings.
    """

    operation: str
    table: str
    rows: Mapping[str, int]
    method: str | None = None
    operands: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reductions: tuple[Reduction, ...] = ()

    def measured(self, results: Mapping[Reduction, Result]) -> "TableReport":
        """Return the report with the metrics and warnings of its reductions."""
        found = [results[reduction] for reduction in self.reductions]
        metrics = {name: value for result in found for name, value in result.metrics.items()}
        warnings = (warning for result in found for warning in result.warnings)
        return replace(self, metrics={**self.metrics, **metrics}, warnings=(*self.warnings, *warnings), reductions=())

    def all_warnings(self) -> list[str]:
        """Return all warnings about this table for the user of the model."""
        converted = {"": self.rows, **{f" of {model}": rows for model, rows in self.operands.items()}}
        inexact = [
            f"{rows['inexact']} tokens hold bytes that the old vocabulary{operand} cannot spell in full"
            for operand, rows in converted.items()
            if rows.get("inexact", 0)
        ]
        return [f"{self.table}: {warning}" for warning in [*self.warnings, *inexact]]

    def plain(self) -> dict[str, Any]:
        """Return the entry of lepmerge_report.json, without empty values."""
        assert not self.reductions, "plain() before measured()"
        entry = {
            "operation": self.operation,
            "table": self.table,
            "method": self.method,
            "rows": dict(self.rows),
            "operands": {model: dict(rows) for model, rows in self.operands.items()},
            "metrics": dict(self.metrics),
            "warnings": list(self.warnings),
        }
        return {key: value for key, value in entry.items() if value or key == "rows"}

    @classmethod
    def of_plain(cls, entry: Mapping[str, Any]) -> "TableReport":
        """Return the report for an entry that plain() made."""
        return cls(**{**entry, "warnings": tuple(entry.get("warnings", ()))})
