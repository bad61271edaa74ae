"""Table 1: what each method can do, with its storage and compute as measured (paper §2.3)."""

from quickdrop_bench.reporting.capabilities import CapabilityLayout, Marks

LAYOUT = CapabilityLayout(
    number=1,
    title="capabilities and efficiency of federated unlearning methods",
    methods=("retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    published={
        "retrain-or": Marks(True, True, True, True, "✗ (very low)"),
        "federaser": Marks(True, True, True, False, "✗ (low)"),
        "s2u": Marks(False, True, True, True, "✗ (low)"),
        "sga-or": Marks(True, True, True, True, "✗ (medium)"),
        "fu-mp": Marks(True, False, False, True, "✗ (medium)"),
        "quickdrop": Marks(True, True, True, True, "✓ (high)"),
    },
)

VARIANTS = (("table2", "table2", ()), ("table2", "table4", ()))
"""On Table 2's federations: class requests, taken over from there, and client requests to Table 4's methods."""
