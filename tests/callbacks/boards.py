"""Reads what was logged as TensorBoard itself does, with the backend of its plugins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

LAYOUT = "custom_scalars__config__"


class Board:
    """A folder with one run, as the Custom Scalars page sees it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        plugins: dict[str, Any] = {}
        context = TBContext(
            logdir=str(folder),
            data_provider=MultiplexerDataProvider(multiplexer, str(folder)),
            plugin_name_to_instance=plugins,
        )
        plugins["scalars"] = ScalarsPlugin(context)
        self._plugin = CustomScalarsPlugin(context)
        (self._run,) = multiplexer.Runs()

    def charts(self) -> dict[str, dict[str, list[str]]]:
        """Category to title to tags, found with the query that the page would send."""
        layout = json.loads(self._plugin.layout_impl(RequestContext(), "") or "{}")
        return {
            category["title"]: {chart["title"]: self._tags(chart) for chart in category["chart"]}
            for category in layout.get("category", [])
        }

    def events(self) -> list[Any]:
        """All events of the files, in order."""
        files = sorted(self.folder.glob("events.out.tfevents.*"))
        return [event for file in files for event in LegacyEventFileLoader(str(file)).Load()]

    def layouts(self) -> list[Layout]:
        """The layouts that were written, the one that counts last."""
        values = [value for event in self.events() for value in event.summary.value]
        strings = [value.tensor.string_val[0] for value in values if value.tag == LAYOUT]
        return [Layout.FromString(one) for one in strings]

    def steps(self, tag: str) -> list[int]:
        """The steps under which a scalar was logged."""
        return [event.step for event in self._accumulator().Scalars(tag)]

    def values(self, tag: str) -> list[float]:
        """The values of a scalar."""
        return [event.value for event in self._accumulator().Scalars(tag)]

    def scalars(self) -> set[str]:
        """The tags of all scalars."""
        return set(self._accumulator().Tags()["scalars"])

    def _accumulator(self) -> EventAccumulator:
        return EventAccumulator(str(self.folder), size_guidance={"scalars": 0}).Reload()

    def _tags(self, chart: dict[str, Any]) -> list[str]:
        if "margin" in chart:  # as the page's script joins them
            series = [
                one[k] for one in chart["margin"]["series"] for k in ("value", "lower", "upper")
            ]
            patterns = [re.escape(one) for one in series]
        else:
            patterns = chart["multiline"]["tag"]
        query = "|".join(f"({one})" for one in patterns) if len(patterns) > 1 else patterns[0]
        answer = self._plugin.scalars_impl(RequestContext(), self._run, query, "")
        assert answer["regex_valid"], query
        return sorted(answer["tag_to_events"])
