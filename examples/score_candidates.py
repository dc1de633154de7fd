"""Ranks items for a user, as a service would: by ids, from the folder that `learn-rank export-model` wrote.

    learn-rank demo run_dir=runs/demo
    learn-rank export-model run_dir=runs/demo
    python examples/score_candidates.py runs/demo/model 7 500000 500001 500002

Prints the items and their probabilities, the likeliest first.
"""

import sys

from learn_rank.serving import Scorer

folder, user_id, *item_ids = [int(word) if word.isdigit() else word for word in sys.argv[1:]]
scorer = Scorer(folder)  # once, when the service starts
scores = scorer.score(user_id, item_ids)
for place in (-scores).argsort():
    print(item_ids[place], f"{scores[place]:.4f}")
