"""What the statistics of a layer mean, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lightning_lth.layer_stats.batch_norm import BatchNormState
from lightning_lth.layer_stats.facts import Facts, FunctionalDropout
from lightning_lth.layer_stats.findings import Diagnosis, Finding, Thresholds

Statistics = Mapping[str, float]


@final
@dataclass(frozen=True)
class BatchNormFacts:
    """What must be known of a batch-norm layer beside its statistics.

    Attributes:
        state: What normalizes it while training.
        batches_tracked: Batches that its running statistics have seen.
        initial_share: How much of their initial values is left in them, in [0, 1].
        is_warmed_up: Whether that is as good as nothing.
        dropouts_before: Names of active Dropouts that run before it.
    """

    state: BatchNormState
    batches_tracked: int = 0
    initial_share: float = 0.0
    is_warmed_up: bool = True
    dropouts_before: Sequence[str] = ()


_Rule = Callable[[Statistics, BatchNormFacts, Thresholds], tuple[Finding, str] | None]


def diagnose_batch_norm(
    layer: str, statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> list[Diagnosis]:
    """All findings about a batch-norm layer.

    Args:
        layer: Its name.
        statistics: Those that are known; rules about others are silent.
        facts: About the layer.
        thresholds: When to speak.

    Examples:
        >>> facts = BatchNormFacts(BatchNormState.TRACKING, dropouts_before=["drop"])
        >>> found = diagnose_batch_norm("bn", {"train_eval_ratio": 0.8}, facts, Thresholds())
        >>> found[0].finding
        <Finding.DROPOUT_BEFORE_BATCH_NORM: 'dropout before batch norm'>
    """
    findings = (rule(statistics, facts, thresholds) for rule in _RULES)
    return [
        Diagnosis(finding, layer, f"BatchNorm '{layer}' {message}")
        for finding, message in filter(None, findings)
    ]


def diagnose_dropout(
    layer: str, statistics: Statistics, thresholds: Thresholds
) -> Iterator[Diagnosis]:
    """The finding about a Dropout, if there is one.

    Examples:
        >>> [found] = diagnose_dropout("drop", {"keep": 0.6, "keep_z": 9.0}, Thresholds())
        >>> found.finding
        <Finding.KEEP_RATE: 'keep rate'>
    """
    deviation = statistics.get("keep_z", 0.0)
    if abs(deviation) > thresholds.keep_z:
        yield Diagnosis(
            Finding.KEEP_RATE,
            layer,
            f"Dropout '{layer}' keeps {statistics['keep']:.3g} of its values, {abs(deviation):.3g} "
            f"standard deviations from its setting. Look for a subclass, or a hook that rescales.",
        )


def diagnose_uses(training: Facts | None, evaluation: Facts | None) -> list[Diagnosis]:
    """Findings about dropout that no Dropout layer does.

    Args:
        training: What a survey of a training batch found.
        evaluation: What a survey of an evaluation batch found.

    Examples:
        >>> use = FunctionalDropout("head", "dropout", p=0.5, is_training=True, is_left_on=True)
        >>> diagnose_uses(None, Facts(functional_dropout=[use]))[0].finding
        <Finding.DROPOUT_IN_EVALUATION: 'dropout in evaluation'>
    """
    unwatched = [] if training is None else training.functional_dropout
    unwatched = [use for use in unwatched if use.is_training]
    uses = [] if evaluation is None else evaluation.functional_dropout
    return [
        *(Diagnosis(Finding.UNWATCHED_DROPOUT, use.owner, _unwatched(use)) for use in unwatched),
        *(
            Diagnosis(Finding.DROPOUT_IN_EVALUATION, use.owner, _left_on(use))
            for use in uses
            if use.is_left_on
        ),
    ]


def _unwatched(use: FunctionalDropout) -> str:
    return (
        f"{_name(use)} drops values by `{use.function}` (p={use.p:g}). No Dropout layer does it, "
        f"so that what it keeps is not observed."
    )


def _left_on(use: FunctionalDropout) -> str:
    return (
        f"{_name(use)} drops values in evaluation, too: `{use.function}` (p={use.p:g}) is told to. "
        f"Pass `training=self.training`, or `dropout_p=0.0` in evaluation."
    )


def _name(use: FunctionalDropout) -> str:
    return f"'{use.owner}'" if use.owner else "The module"


def _dropout_before(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    ratio = statistics.get("train_eval_ratio", 1.0)
    if not _is_shifted_by_dropout(ratio, facts, thresholds) or not facts.is_warmed_up:
        return None
    names = ", ".join(f"'{name}'" for name in facts.dropouts_before)
    return Finding.DROPOUT_BEFORE_BATCH_NORM, (
        f"runs behind Dropout {names}: in evaluation the variance of its input is only {ratio:.3g} "
        f"of its running variance (Li et al. 2019). Put Dropout behind the last BatchNorm, or "
        f"lower its rate."
    )


def _is_shifted_by_dropout(ratio: float, facts: BatchNormFacts, thresholds: Thresholds) -> bool:
    return bool(facts.dropouts_before) and ratio * thresholds.variance_shift < 1


def _train_eval_gap(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    shift = statistics.get("train_eval_shift", 0.0)
    ratio = statistics.get("train_eval_ratio", 1.0)
    is_told = _is_shifted_by_dropout(ratio, facts, thresholds)
    if is_told or shift <= thresholds.train_eval_shift or not facts.is_warmed_up:
        return None
    return Finding.TRAIN_EVAL_GAP, (
        f"sees other data in evaluation: the variance of its input is off its running variance by "
        f"a factor of {shift:.3g}. Compare preprocessing and augmentation of training and "
        f"validation, and raise `momentum` if the network changes fast."
    )


def _few_values(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    count = statistics.get("values_per_channel")
    if count is None or count >= thresholds.values_per_channel:
        return None
    if not facts.state.normalizes_with_batch:
        return None
    return Finding.FEW_VALUES, (
        f"normalizes with {count:.0f} values per channel, whose variance says little. Use larger "
        f"batches, `drop_last=True`, SyncBatchNorm across devices, or GroupNorm."
    )


def _frozen(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    if facts.state is not BatchNormState.UNFOLLOWED:
        return None
    return Finding.FROZEN_WITH_BATCH_STATISTICS, (
        "is frozen (`track_running_stats=False`, as by Lightning's `BaseFinetuning.freeze`), yet "
        "normalizes with batch statistics in training, and with the old running ones in "
        "evaluation. Call `.eval()` on it in `on_train_epoch_start`, or freeze with "
        "`train_bn=True`."
    )


def _not_warmed_up(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    is_asked = "train_eval_shift" in statistics  # in evaluation
    if not is_asked or facts.is_warmed_up or not facts.state.moves_buffers:
        return None
    if facts.state is BatchNormState.CUMULATIVE:
        why, advice = "are the mean of no more", "Validate later"
    else:
        why = f"still hold {facts.initial_share:.0%} of their initial values"
        advice = "Validate later, or raise `momentum`"
    noun = "batch" if facts.batches_tracked == 1 else "batches"
    return Finding.NOT_WARMED_UP, (
        f"is evaluated after {facts.batches_tracked} {noun}, when its running statistics {why}. "
        f"{advice}; what this validation says of it is left out."
    )


def _dead(
    statistics: Statistics, facts: BatchNormFacts, thresholds: Thresholds
) -> tuple[Finding, str] | None:
    share = statistics.get("dead", 0.0)
    if share <= thresholds.dead_channels:
        return None
    return Finding.DEAD_CHANNELS, (
        f"has {share:.0%} dead channels: their input is constant, or the ReLU behind passes next "
        f"to nothing. Lower the learning rate or the weight decay, or prune them."
    )


_RULES: tuple[_Rule, ...] = (
    _dropout_before,
    _train_eval_gap,
    _few_values,
    _frozen,
    _not_warmed_up,
    _dead,
)
