"""Training speed and memory of cohorts on one GPU, each beside what users run today.

Usage: python benchmarks/cohort.py [--rows a,b] [--tiny] [--results DIR], on a machine with a GPU;
writes cohort.json. Models have real shapes and random weights. Each row runs the peer and ours in
turn in this process, on the same weights, tokens and initial adapters, and fails if their losses
differ. ``--tiny`` runs the same code at a toy shape on any device.

The rows: cohort_lora.py (arms of one and of several ranks), cohort_full.py (full finetuning),
cohort_pairs.py (instruction pairs, and losses beside those of arms alone), cohort_labels.py (the
output head for labels alone), cohort_switches.py (without what is on by default).
"""

from __future__ import annotations

import cohort_full
import cohort_labels
import cohort_lora
import cohort_pairs
import cohort_switches
from cohort_run import CLAIMS

FAMILIES = (cohort_lora, cohort_full, cohort_pairs, cohort_labels, cohort_switches)

if __name__ == "__main__":
    CLAIMS.main(__doc__)
