# SPDX-License-Identifier: Apache-2.0
"""What sums, means, extremes and rankings along axes do to labels."""

from rarefy.graph.book import Book
from rarefy.graph.joins import reduce
from rarefy.graph.operators import RULES, Run, only, rule


def sums(book: Book, run: Run) -> None:
    """A sum, mean, extreme or spread over axes."""
    x = run["self"]
    dims = run["dim"] if run["dim"] is not None else list(range(x.dim()))
    axes = [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)] or list(
        range(x.dim())
    )
    fields = reduce(book, book.fields(x), axes, bool(run["keepdim"]))
    for out in run.results:
        book.put(out, fields if out.dim() else ())


for packet in ("sum", "mean", "amax", "amin", "var", "std", "var_mean",
               "norm", "linalg_vector_norm", "prod", "logsumexp", "std_mean"):  # fmt: skip
    RULES[packet] = sums


@rule(
    "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum",
    "sort", "topk", "argmax", "argmin", "max", "min", "cumprod",
)  # fmt: skip
def ranked(book: Book, run: Run) -> None:
    """Along the axis every position matters to every other, so nothing can be cut there."""
    x = run["self"]
    dim = run["dim"] if run["dim"] is not None else -1
    keep = [a for a in range(x.dim()) if a != dim % x.dim()]
    fields = only(book, x, keep)
    for out in run.results:
        left = fields
        if out.dim() < x.dim():
            left = tuple(f.squeeze(dim) for f in fields) if out.dim() == x.dim() - 1 else ()
        book.put(out, left)
