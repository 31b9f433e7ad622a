# SPDX-License-Identifier: Apache-2.0
"""Text becomes windows of token ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.prefix import begun, prefix_of
from prunec.compiler.calibration.readers import OwnDocuments, joined
from prunec.compiler.calibration.sources import Document, SourceError
from prunec.compiler.calibration.windows import (
    EncodeDocument,
    TooLittleTextError,
    all_windows,
    cut_windows,
    document_ids,
    draw_windows,
)
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry


def run_tokens(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Windows begin with what the model's tokenizer begins a text with; `order` is the seed of the
    source's documents, None where the whole text is read in its own order."""
    params = step.params
    prefix = prefix_of(context.tokenizer, params["bos"])
    context.check_ids(prefix)
    if params["length"] <= len(prefix):
        raise BuildError(
            f"a text begins with {len(prefix)} tokens, which leave no room in windows of "
            f"{params['length']}",
            hint="raise the sequence length",
        )
    tally = sources.Tally()
    documents = _documents(params, context, tally)
    encode = _encoder(context, params, prefix, progress)
    try:
        ids = _windows(params, documents, encode, len(prefix))
    except TooLittleTextError as error:
        raise _too_little(params, documents, error.tokens) from None
    if bool((ids == context.end_id).all()):
        raise SourceError("the text holds nothing but tokens that end a text")
    ids = begun(ids, prefix)
    entry.save_tensors("ids", {"ids": ids})
    begin = context.tokenizer.convert_ids_to_tokens(prefix)
    return {
        "tokens": ids.numel(),
        "prefix": prefix,
        "begin": "".join(map(str, begin)),
        "skipped": tally.skipped,
    }


def windows_cut(params: Mapping[str, Any]) -> tuple[int, int]:
    """The length of the windows that a step's own are cut from, and how many come of each.

    Both lengths count what every window begins with; so many pieces fit whatever that is.
    """
    whole = params.get("cut_from", params["length"])
    return whole, whole // params["length"]


def _too_little(params: Mapping[str, Any], documents: OwnDocuments, tokens: int) -> SourceError:
    """In the recipe's own numbers, which count what windows begin with."""
    whole, _ = windows_cut(params)
    wanted = whole if params["order"] is None else whole * params["total"]
    if documents.seen == documents.taken:
        return TooLittleTextError(tokens, wanted)
    return SourceError(
        f"the source holds {tokens:,} tokens for this text, in {documents.taken:,} of its "
        f"{documents.seen:,} documents or parts of them; {wanted:,} are asked for",
        hint="other texts read this source too, or a share of it is held out: ask for fewer "
        "tokens, give more text, or give one of them a source of its own",
    )


def _windows(
    params: Mapping[str, Any], documents: Iterable[Document], encode: EncodeDocument, before: int
) -> Tensor:
    """[windows, length - before]: without what each begins with."""
    length = params["length"] - before
    if params["order"] is None:
        return all_windows(_in_order(documents, params["source"].get("join")), encode, length)
    whole, pieces = windows_cut(params)
    ids = draw_windows(
        documents,
        encode,
        windows=math.ceil(params["windows"] / pieces),
        length=whole - before,
        seed=params["seed"],
        total=params["total"],
    )
    return cut_windows(ids, params["windows"], length, pieces)


def _documents(params: Mapping[str, Any], context: Context, tally: sources.Tally) -> OwnDocuments:
    source, order = params["source"], params["order"]
    # Published texts are all rows joined, the empty ones too.
    all_rows = order is None and source.get("join") is not None
    return OwnDocuments(
        sources.documents(
            source,
            order,
            context.base,
            template=lambda messages: str(
                context.tokenizer.apply_chat_template(messages, tokenize=False)
            ),
            tally=tally,
            keep_empty=all_rows,
        ),
        sources.file_bytes(source, context.base),
        holdout=source.get("holdout"),
        judges=params["judges"],
        **params.get("deal", {}),
    )


def _in_order(documents: Iterable[Document], join: str | None) -> Iterable[Document]:
    """Whole documents; where they are joined by a string, one document of all of them, so that it
    is split into tokens as a whole."""
    whole = joined(documents)
    if join is None:
        return whole
    return [Document(join.join(document.text for document in whole), "", whole=False)]


def _encoder(
    context: Context, params: Mapping[str, Any], prefix: list[int], progress: Progress
) -> EncodeDocument:
    tokenizer, join, end_id = context.tokenizer, params["source"].get("join"), context.end_id
    wanted, seen = params["windows"] * params["length"], 0

    def encode(text: str) -> list[int]:
        nonlocal seen
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        context.check_ids(ids)
        seen += len(ids)
        progress(min(seen, wanted), wanted, "tokens read")
        return ids

    return lambda document: document_ids(document, encode, end_id, join=join, prefix=prefix)
