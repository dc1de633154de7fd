"""A generated log with a planted content signal: what users like is written in the item texts.

The world: an item belongs to a topic (its words, and its category) and has a style (its adjectives); a user likes a few
topics and one style. Clicks follow that taste, the item's quality and the user's own click rate; conversions after a
click follow taste and price. Popularity is a power law. Some items and users appear only near the end of the log. The
platform has the tastes of most of its older users on file, as features of the baseline; of the new ones it knows only
what their first clicks tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.arrays import Float64Array
from learn_rank.data.recipe import (
    DatasetRecipe,
    InteractionsSource,
    ItemsSource,
    SequenceSource,
    SparseSource,
    SplitOptions,
    UsersSource,
)
from learn_rank.errors import InputError
from learn_rank.io import write_table
from learn_rank.options import check_seed

_TOPICS = {
    "camping": "tent sleeping bag lantern stove backpack hammock campfire trail compass canteen",
    "cycling": "bike helmet pedal saddle jersey chain handlebar tyre pump panniers",
    "gardening": "seeds trowel planter hose compost pruner greenhouse soil rake watering",
    "running": "sneakers treadmill stopwatch marathon insoles shorts stride hydration vest reflective",
    "cooking": "skillet knife saucepan spatula oven whisk apron wok marinade cutting",
    "coffee": "espresso grinder beans mug french press roast kettle filter crema",
    "bedding": "pillow duvet mattress linen blanket quilt sheets topper cushion throw",
    "cleaning": "vacuum mop detergent sponge bucket duster bleach broom microfibre polish",
    "gaming": "console controller headset joystick keyboard quest arcade pixel multiplayer streaming",
    "photography": "camera lens tripod shutter flash aperture zoom darkroom portrait film",
    "audio": "speaker headphones amplifier vinyl turntable bass microphone stereo cable equaliser",
    "computing": "laptop monitor processor memory router charger docking printer tablet storage",
    "painting": "canvas brush easel acrylic watercolour palette sketch charcoal varnish gallery",
    "reading": "novel paperback bookmark mystery biography poetry thriller library chapter author",
    "yoga": "mat block strap meditation incense bolster balance breathing pilates stretch",
    "pets": "dog cat leash aquarium litter kennel collar treats hamster grooming",
}
_STYLES = {
    "rugged": "rugged durable waterproof heavy military reinforced",
    "elegant": "elegant slim refined silk polished minimalist",
    "playful": "playful colourful cheerful neon cartoon sparkling",
    "classic": "classic vintage wooden heritage leather antique",
    "smart": "smart wireless automatic connected rechargeable digital",
    "budget": "budget basic starter compact value everyday",
}
_START = 1_700_000_000  # seconds
_DAY = 86_400
_PROFILE_SHARE = 0.85  # of the users who were there from the start


@dataclass
class SyntheticOptions:
    """Size of the generated log."""

    num_users: int = field(default=2500, metadata={"help": "number of users"})
    num_items: int = field(default=2000, metadata={"help": "number of items"})
    num_interactions: int = field(default=300_000, metadata={"help": "number of impressions"})
    num_days: int = field(
        default=60, metadata={"help": "length of the log in days; the last 15 % of rows are the test window"}
    )
    new_share: float = field(default=0.2, metadata={"help": "share of users and items that appear near the end"})
    taste_weight: float = field(default=1.5, metadata={"help": "strength of the planted content signal"})
    shuffle_store: bool = field(
        default=False, metadata={"help": "permute the user and item vectors, so that no lift remains"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the generated log"})

    def __post_init__(self) -> None:
        for name, least in (("num_users", 100), ("num_items", 100), ("num_interactions", 1000), ("num_days", 10)):
            if getattr(self, name) < least:
                raise InputError(f"demo.{name} is {getattr(self, name)}, must be {least} or more")
        check_seed("demo.seed", self.seed)
        if not 0 <= self.new_share < 1:
            raise InputError(f"demo.new_share is {self.new_share}, must be at least 0 and below 1")


def write_synthetic(directory: Path, options: SyntheticOptions) -> dict[str, Any]:
    """Writes interactions, items and users as Parquet (`synthetic_recipe` reads them) and returns their counts."""
    generator = np.random.default_rng(options.seed)
    topics = generator.integers(len(_TOPICS), size=options.num_items)
    styles = generator.integers(len(_STYLES), size=options.num_items)
    prices: Float64Array = np.exp(generator.normal(3.0, 0.6, options.num_items)).round(2)
    write_table(directory / "items.parquet", _items(generator, topics, styles, prices))

    likes_topic = generator.gumbel(size=(options.num_users, len(_TOPICS)))
    likes_topic = (likes_topic >= np.sort(likes_topic, axis=1)[:, [-3]]).astype(float)  # three topics each
    likes_style = np.eye(len(_STYLES))[generator.integers(len(_STYLES), size=options.num_users)]
    age_groups = generator.integers(6, size=options.num_users)
    born_user = _births(generator, options.num_users, options.new_share)
    names = np.array(list(_TOPICS))
    has_profile = (born_user == 0) & (generator.random(options.num_users) < _PROFILE_SHARE)
    write_table(
        directory / "users.parquet",
        pa.table(
            {
                "user_id": np.arange(options.num_users) + 10_000,
                "age_group": [f"{18 + 10 * group}-{27 + 10 * group}" for group in age_groups],
                "interests": [
                    "|".join(names[liked > 0]) if is_known else None
                    for liked, is_known in zip(likes_topic, has_profile, strict=True)
                ],
                "style": [
                    list(_STYLES)[liked.argmax()] if is_known else None
                    for liked, is_known in zip(likes_style, has_profile, strict=True)
                ],
            }
        ),
    )

    born_item = _births(generator, options.num_items, options.new_share)
    users = _users_by_activity(generator, born_user, options)
    times = born_user[users] + (1 - born_user[users]) * generator.random(len(users))
    items = _exposed_items(generator, times, born_item)

    taste = likes_topic[users, topics[items]] * 1.6 + likes_style[users, styles[items]] * 1.4
    quality = generator.normal(0, 0.5, options.num_items)
    habit = generator.normal(0, 0.5, options.num_users)
    click_logit = -2.8 + options.taste_weight * taste + quality[items] + habit[users]
    clicks = generator.random(len(users)) < _sigmoid(click_logit)
    conversion_logit = -2.0 + 0.8 * options.taste_weight * taste - 0.4 * (np.log(prices[items]) - 3.0)
    conversions = clicks & (generator.random(len(users)) < _sigmoid(conversion_logit))
    order = np.argsort(times, kind="stable")
    seconds = _START + (times * options.num_days * _DAY).astype(np.int64)
    interactions = pa.table(
        {
            "user_id": users + 10_000,
            "item_id": items + 500_000,
            "timestamp": seconds,
            "click": clicks.astype(np.int8),
            "conversion": conversions.astype(np.int8),
            "revenue": np.where(conversions, prices[items], 0.0),
        }
    ).take(pa.array(order))
    write_table(directory / "interactions.parquet", interactions)
    return {"interactions": interactions.num_rows, "click_share": clicks.mean(), "conversions": int(conversions.sum())}


def synthetic_recipe(directory: Path) -> DatasetRecipe:
    """The recipe of the generated log."""
    return DatasetRecipe(
        name="generated",
        root=str(directory),
        interactions=InteractionsSource(
            files="interactions.parquet",
            labels={"click": "click", "conversion": "conversion"},
            value="revenue",
        ),
        items=ItemsSource(files="items.parquet", text=["title", "category", "brand", "keywords"]),
        users=UsersSource(files="users.parquet"),
        ranking_label="click",
        cvr_label="conversion",
        history_label="click",
        sparse={
            "user_id": SparseSource(column="interactions.user_id"),
            "item_id": SparseSource(column="interactions.item_id"),
            "age_group": SparseSource(column="users.age_group"),
            "style": SparseSource(column="users.style"),
            "interests": SparseSource(column="users.interests", separator="|"),
            "category": SparseSource(column="items.category"),
            "brand": SparseSource(column="items.brand"),
        },
        dense={"price": "items.price"},
        sequence={"history": SequenceSource(of="item_id")},
        split=SplitOptions(validation_fraction=0.1, test_fraction=0.15),
        notes=[
            "The data is generated, with a content signal planted in the item texts: it shows that the parts work "
            "together, not what LEARN does on a real log."
        ],
    )


def _items(
    generator: np.random.Generator,
    topics: npt.NDArray[np.int64],
    styles: npt.NDArray[np.int64],
    prices: Float64Array,
) -> pa.Table:
    topic_words = [words.split() for words in _TOPICS.values()]
    style_words = [words.split() for words in _STYLES.values()]
    titles, keywords = [], []
    for topic, style in zip(topics, styles, strict=True):
        noun = generator.choice(topic_words[topic], 3, replace=False)
        adjective = generator.choice(style_words[style], 2, replace=False)
        titles.append(f"{adjective[0]} {noun[0]} {noun[1]}")
        keywords.append(f"{noun[2]}, {adjective[1]}")
    return pa.table(
        {
            "item_id": np.arange(len(topics)) + 500_000,
            "title": titles,
            "category": [list(_TOPICS)[topic] for topic in topics],
            "brand": [f"brand {number}" for number in generator.integers(60, size=len(topics))],
            "keywords": keywords,
            "price": prices,
        }
    )


def _births(generator: np.random.Generator, count: int, new_share: float) -> Float64Array:
    """[count] first moments in [0, 1): a share appears late in the log, the others are there from the start."""
    is_new = generator.random(count) < new_share
    return np.where(is_new, generator.uniform(0.76, 0.96, count), 0.0)


def _users_by_activity(
    generator: np.random.Generator, born: Float64Array, options: SyntheticOptions
) -> npt.NDArray[np.int64]:
    """[num_interactions] users: a power law of activity; who is new looks around more."""
    activity = (generator.pareto(2.0, options.num_users) + 1) * np.where(born > 0, 2.0, 1.0)
    return generator.choice(options.num_users, options.num_interactions, p=activity / activity.sum())


def _exposed_items(generator: np.random.Generator, times: Float64Array, born: Float64Array) -> npt.NDArray[np.int64]:
    """One shown item per row, by popularity (Zipf) among those that exist; new ones are pushed."""
    popularity = 1.0 / (generator.permutation(len(born)) + 10.0)
    popularity = popularity * np.where(born > 0, 3.0, 1.0)
    items = generator.choice(len(born), len(times), p=popularity / popularity.sum())
    is_unborn = born[items] > times
    items[is_unborn] = generator.choice(np.flatnonzero(born == 0), int(is_unborn.sum()))
    return items


def _sigmoid(logit: Float64Array) -> Float64Array:
    return 1 / (1 + np.exp(-logit))
