# SPDX-License-Identifier: Apache-2.0
"""What came of candidates that were tried before, so that an interrupted search goes on where it stopped."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rarefy.errors import FileError
from rarefy.search.goal import Outcome
from rarefy.search.space import Candidate
from rarefy.store.replacing import replacing


@dataclass
class Memory:
    """Outcomes by candidate, kept in a file.

    The sampler is seeded and told the same outcomes, so it proposes the same candidates again.

    Attributes:
        path: of the file; it need not exist.
    """

    path: Path
    outcomes: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            return
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            self.outcomes = {str(k): [float(x) for x in v] for k, v in held.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise FileError(
                f"'{self.path}' holds no trials of a search ({error}); delete it and start again"
            ) from None

    def get(self, candidate: Candidate) -> Outcome | None:
        """The outcome of a candidate, if it is known."""
        found = self.outcomes.get(repr(candidate))
        return None if found is None else Outcome(found[0], found[1])

    def put(self, candidate: Candidate, outcome: Outcome) -> None:
        """Remembers an outcome, also beyond the end of this process."""
        self.outcomes[repr(candidate)] = [outcome.size, outcome.metric]
        with replacing(self.path) as partial:
            partial.write_text(json.dumps(self.outcomes, indent=1), encoding="utf-8")
