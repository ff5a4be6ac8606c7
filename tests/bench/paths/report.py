"""Medians with spread, tables, JSON."""

import json
import math
import statistics
import sys


def median(samples):
    good = [x for x in samples if math.isfinite(x)]
    return statistics.median(good) if good else math.nan


def cell(samples, digits):
    """The median, and half the distance between the least and the largest as a part of it."""
    good = [x for x in samples if math.isfinite(x)]
    middle = median(good)
    if not math.isfinite(middle):
        return "-"
    text = f"{middle:.{digits}f}"
    if len(good) > 1 and middle:
        text += f" ±{(max(good) - min(good)) / 2 / abs(middle) * 100:.0f}%"
    return text


class Table:
    """Rows by target; a column is (heading, metric, digits)."""

    def __init__(self, title, columns):
        self.title, self.columns, self.rows, self.trouble = title, columns, {}, []
        self.notes, self.goals = [], []

    def add(self, target, metric, value):
        self.rows.setdefault(target, {}).setdefault(metric, []).append(value)

    def samples(self, target, metric):
        return self.rows.get(target, {}).get(metric, [])

    def ratio(self, one, other, metric):
        """The median of the ratios within each round."""
        return median([a / b for a, b in zip(self.samples(one, metric), self.samples(other, metric)) if b])

    def goal(self, text, value, met):
        """A goal of the project, and whether it is met; one that could not be measured is left out."""
        if math.isfinite(value):
            self.goals.append({"text": text, "value": value, "met": bool(met)})

    def print(self):
        print(f"\n{self.title}\n")
        lines = [["", *(heading for heading, _, _ in self.columns)]]
        for target, metrics in self.rows.items():
            lines.append([target, *(cell(metrics.get(metric, []), digits) for _, metric, digits in self.columns)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        for n, line in enumerate(lines):
            print("| " + " | ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths))) + " |")
            if n == 0:
                print("| " + " | ".join("-" * width for width in widths) + " |")
        for note in self.notes:
            print(note)
        for goal in self.goals:
            print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['text']}: {goal['value']:.2f}")
        for trouble in dict.fromkeys(self.trouble):
            print(f"trouble: {trouble}")
        sys.stdout.flush()


def finite(value):
    """NaN is not JSON."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file, about, tables):
    content = {**about, "tables": [
        {"title": table.title, "targets": table.rows, "notes": table.notes, "goals": table.goals,
         "trouble": table.trouble} for table in tables]}
    with open(file, "w") as out:
        json.dump(finite(content), out, indent=1)
