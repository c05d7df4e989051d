"""Studies: tickets against controls, over several seeds, with records, statistics and a report.

Needs ``pip install 'lightning-lth[study]'``.
"""

try:
    from lightning_lth.study.arm import Arm, Part
    from lightning_lth.study.arms import AtInitialization, Control, IterativePruning, OneShot
    from lightning_lth.study.claims import Claim
    from lightning_lth.study.conclusion import Conclusion, conclude
    from lightning_lth.study.design import Ladder, Measures, Study
    from lightning_lth.study.judgments import Judgment, Verdict
    from lightning_lth.study.results import Results
    from lightning_lth.study.runner import run_study
    from lightning_lth.study.settings import load_study
    from lightning_lth.study.stability import Stability
    from lightning_lth.study.transfer import transfer
    from lightning_lth.study.trial import Trial
except ModuleNotFoundError as error:
    raise ImportError(
        f"Studies need more packages: pip install 'lightning-lth[study]'. ({error})"
    ) from error

__all__ = [
    "Arm",
    "AtInitialization",
    "Claim",
    "Conclusion",
    "Control",
    "IterativePruning",
    "Judgment",
    "Ladder",
    "Measures",
    "OneShot",
    "Part",
    "Results",
    "Stability",
    "Study",
    "Trial",
    "Verdict",
    "conclude",
    "load_study",
    "run_study",
    "transfer",
]
