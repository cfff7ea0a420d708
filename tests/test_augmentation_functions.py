"""The stateless functions: NumPy does the same with the same drawn numbers."""

from __future__ import annotations

import statistics
import struct

import numpy as np
import pytest
import tensorflow as tf

from keras_kd import augmentation as aug
from keras_kd.augmentation import draws, mixing

SEEDS = np.array([[number, 7 * number - 40] for number in range(12)], "int32")
FACTORIES = {
    "flips": lambda: aug.flips(vertical=True),
    "shifts": lambda: aug.shifts(2),
    "crops": lambda: aug.crops(5, 4, padding=1),
    "rotations": lambda: aug.rotations(30),
    "noise": lambda: aug.noise(3.0),
    "brightness": lambda: aug.brightness(0.3),
    "contrast": lambda: aug.contrast(0.5),
    "chain": lambda: aug.chain(aug.flips(), aug.shifts(1), aug.noise(2.0)),
}


def images(dtype="uint8", shape=(12, 6, 7, 3)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape).astype(dtype)


def hashed(rows: list[bytes]) -> np.ndarray:
    """FarmHash64 of each row."""
    return tf.fingerprint(np.array([list(row) for row in rows], "uint8")).numpy()


def drawn(seeds: np.ndarray, count: int, below: int) -> np.ndarray:
    """What `draws.whole` is defined as: the hash of the seed and a counter, modulo `below`."""
    rows = [struct.pack("<3q", *map(int, seed), k) for seed in seeds for k in range(count)]
    return hashed(rows).view("<i8").reshape(len(seeds), count) % below


# What is drawn


def test_the_hash_is_farmhash64() -> None:
    # The example of FARM_FINGERPRINT in the documentation of BigQuery's SQL functions.
    known = {
        "1footrue": -1541654101129638711,
        "2applefalse": 2794438866806483259,
        "3true": -4880158226897771312,
    }
    for text, value in known.items():
        assert hashed([text.encode()]).view("<i8").item() == value


def test_view_seeds_hash_content_view_and_seed() -> None:
    content = np.arange(24, dtype="uint8").reshape(3, 8)
    rows = [bytes(row) + struct.pack("<2q", 4, -9) for row in content]
    seeds = draws.view_seeds(tf.constant(content), 4, -9)
    np.testing.assert_array_equal(seeds, hashed(rows).view("<i4"))
    whole = content.tobytes() + struct.pack("<3q", 3, 4, -9)
    np.testing.assert_array_equal(
        draws.batch_seed(tf.constant(content), 4, -9), hashed([whole]).view("<i4")[0]
    )


def test_derived_seeds_hash_the_seed_and_the_step() -> None:
    rows = [struct.pack("<3q", *map(int, seed), -3) for seed in SEEDS]
    np.testing.assert_array_equal(draws.derived(SEEDS, 2), hashed(rows).view("<i4"))


def test_whole_numbers_and_uniform_ones() -> None:
    np.testing.assert_array_equal(draws.whole(SEEDS, 3, 11), drawn(SEEDS, 3, 11))
    expected = (drawn(SEEDS, 3, 2**24) / 2.0**24).astype("float32")
    np.testing.assert_array_equal(draws.uniform(SEEDS, 3), expected)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seeds = np.stack([np.arange(20_000), np.zeros(20_000)], 1).astype("int32")
    values = draws.uniform(seeds, 2).numpy().astype("float64")
    error = 4 / np.sqrt(len(values))  # four standard deviations of a standardised mean
    standard = (values - 0.5) * np.sqrt(12)
    assert np.abs(standard.mean(0)).max() < error
    assert abs((standard[:, 0] * standard[:, 1]).mean()) < error  # two numbers of one seed
    assert abs((standard[1:, 0] * standard[:-1, 0]).mean()) < error  # two seeds next to each other
    counts = np.histogram(values, bins=16, range=(0, 1))[0]
    assert ((counts - 2500) ** 2 / 2500).sum() < 45  # chi-squared, 15 degrees, p = 1e-4: 44.3


def test_normal_numbers_are_the_quantiles_of_the_normal_distribution() -> None:
    table = draws.normal_table()
    exact = [statistics.NormalDist().inv_cdf((place + 0.5) / 65536) for place in (0, 9_000, 65535)]
    np.testing.assert_allclose(table[[0, 9_000, 65535]], exact, rtol=1e-4)
    assert np.var(table.astype("float64")) == pytest.approx(1, abs=1e-6)
    rows = [struct.pack("<3q", *map(int, seed), k) for seed in SEEDS for k in range(2)]
    places = hashed(rows).view("<u2").reshape(12, 8)[:, :7]
    np.testing.assert_array_equal(draws.normal(SEEDS, 7), table[places])


# Images


@pytest.mark.parametrize("name", FACTORIES)
def test_an_example_alone_is_as_in_its_batch(name) -> None:
    function, x = FACTORIES[name](), images()
    batch = function.batch(tf.constant(x), tf.constant(SEEDS)).numpy()
    for image, seed, expected in zip(x, SEEDS, batch, strict=True):
        np.testing.assert_array_equal(function(image, seed), expected)
    assert batch.dtype == x.dtype
    assert (
        len(
            {
                one.tobytes()
                for one in function.batch(tf.constant(x[:1].repeat(12, 0)), SEEDS).numpy()
            }
        )
        > 1
    )


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "bfloat16", "float32", "float64"])
def test_shape_and_type_are_kept(name, dtype) -> None:
    x = tf.cast(images(), dtype)
    changed = FACTORIES[name]().batch(x, tf.constant(SEEDS))
    assert changed.dtype == x.dtype
    assert changed.shape == ((12, 5, 4, 3) if name == "crops" else x.shape)


@pytest.mark.parametrize("name", ["flips", "shifts", "crops", "rotations"])
def test_an_image_without_channels(name) -> None:
    function, x = FACTORIES[name](), tf.constant(images("float32", (12, 6, 7, 1)))
    with_channel = function.batch(x, tf.constant(SEEDS))
    np.testing.assert_array_equal(
        function.batch(x[..., 0], tf.constant(SEEDS)), with_channel[..., 0]
    )


def test_flips() -> None:
    x, chance = images(), drawn(SEEDS, 2, 2) == 0
    assert 0 < chance[:, 0].sum() < 12
    expected = [
        image[:, ::-1] if mirror else image for image, mirror in zip(x, chance[:, 0], strict=True)
    ]
    np.testing.assert_array_equal(aug.flips().batch(tf.constant(x), SEEDS), expected)
    both = [
        image[::-1] if turn else image for image, turn in zip(expected, chance[:, 1], strict=True)
    ]
    np.testing.assert_array_equal(aug.flips(vertical=True).batch(tf.constant(x), SEEDS), both)


def test_shifts() -> None:
    x = images()
    expected = np.zeros_like(x)
    for image, moved, (down, right) in zip(x, expected, drawn(SEEDS, 2, 7) - 3, strict=True):
        for row in range(6):
            for column in range(7):
                if 0 <= row - down < 6 and 0 <= column - right < 7:
                    moved[row, column] = image[row - down, column - right]
    np.testing.assert_array_equal(aug.shifts(3).batch(tf.constant(x), SEEDS), expected)


@pytest.mark.parametrize("padding", [0, 2])
def test_crops(padding) -> None:
    x, (height, width) = images(), (4, 5)
    framed = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    tops = drawn(SEEDS, 2, 6 + 2 * padding - height + 1)[:, 0]
    lefts = drawn(SEEDS, 2, 7 + 2 * padding - width + 1)[:, 1]
    assert {0, 6 + 2 * padding - height} <= set(tops.tolist()) or padding
    expected = [
        image[top : top + height, left : left + width]
        for image, top, left in zip(framed, tops, lefts, strict=True)
    ]
    cropped = aug.crops(height, width, padding).batch(tf.constant(x), SEEDS)
    np.testing.assert_array_equal(cropped, expected)


def rotated(image: np.ndarray, angle: float) -> np.ndarray:
    """Turn counter-clockwise by bilinear interpolation, in float64, zeros around."""
    height, width, _ = image.shape
    framed = np.pad(image.astype("float64"), [(1, 1), (1, 1), (0, 0)])
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    result = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            right, down = x - middle_x, y - middle_y
            from_x = middle_x + np.cos(angle) * right - np.sin(angle) * down
            from_y = middle_y + np.sin(angle) * right + np.cos(angle) * down
            left, top = int(np.floor(from_x)), int(np.floor(from_y))
            for row, column in [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]:
                if -1 <= row <= height and -1 <= column <= width:
                    share = (1 - abs(from_y - row)) * (1 - abs(from_x - column))
                    result[y, x] += share * framed[row + 1, column + 1]
    return result


def test_rotations() -> None:
    x = images("float32")
    angles = np.linspace(-np.pi / 6, np.pi / 6, 1025)[drawn(SEEDS, 1, 1025)[:, 0]]
    expected = [rotated(image, angle) for image, angle in zip(x, angles, strict=True)]
    turned = aug.rotations(30).batch(tf.constant(x), SEEDS)
    np.testing.assert_allclose(turned, expected, atol=1e-2)  # of 255; places are float32
    bytes_ = aug.rotations(30).batch(tf.constant(x.astype("uint8")), SEEDS)
    np.testing.assert_array_equal(bytes_, np.rint(turned).astype("uint8"))


def test_a_positive_angle_turns_counter_clockwise() -> None:
    from keras_kd.augmentation.images import turned

    corner = np.zeros((1, 3, 3, 1), "float32")
    corner[0, 0, 2] = 1  # upper right: a quarter turn brings it to the upper left
    quarter = turned(tf.constant(corner), tf.constant([0.0]), tf.constant([1.0]))
    assert quarter[0, 0, 0, 0] == 1
    assert tf.reduce_sum(quarter) == 1


# Values


def test_noise() -> None:
    x = images("float32")
    normal = draws.normal(SEEDS, 6 * 7 * 3).numpy().reshape(x.shape)
    noisy = aug.noise(2.5).batch(tf.constant(x), SEEDS)
    np.testing.assert_allclose(noisy, x + 2.5 * normal, rtol=1e-6)
    expected = np.clip(np.rint(x + np.float32(80) * normal), 0, 255).astype("uint8")
    bytes_ = aug.noise(80).batch(tf.constant(x.astype("uint8")), SEEDS)
    np.testing.assert_array_equal(bytes_, expected)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_brightness_and_contrast(low, high) -> None:
    x = images("float32") / 255 * (high - low) + low
    chance = (drawn(SEEDS, 1, 2**24) / 2.0**24 * 2 - 1).reshape(-1, 1, 1, 1)
    brighter = np.clip(x + 0.3 * chance * (high - low), low, high)
    middle = (low + high) / 2
    stronger = np.clip(middle + (1 + 0.5 * chance) * (x - middle), low, high)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * (high - low)}
    given = tf.constant(x, tf.float32), SEEDS
    np.testing.assert_allclose(
        aug.brightness(0.3, (low, high)).batch(*given), brighter, **tolerance
    )
    np.testing.assert_allclose(aug.contrast(0.5, (low, high)).batch(*given), stronger, **tolerance)


# Batches


def test_mixup() -> None:
    x, y, seed = images("float32"), np.arange(12) % 5, tf.constant([3, 4])
    share = float(mixing.beta(0.4, seed))
    order = mixing.partners(12, seed).numpy()
    assert sorted(order) == list(range(12))
    rows = np.eye(5)[y]
    mixed, labels = aug.mixup(0.4, classes=5)(x, y, seed)
    np.testing.assert_allclose(mixed, share * x + (1 - share) * x[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(labels, share * rows + (1 - share) * rows[order], atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1, atol=1e-6)
    bytes_, same = aug.mixup(0.4)(x.astype("uint8"), rows.astype("float32"), seed)
    np.testing.assert_array_equal(bytes_, np.rint(mixed).astype("uint8"))
    np.testing.assert_array_equal(same, labels)


def test_mixup_blends_each_input_alike() -> None:
    x = {"a": images("float32"), "b": images("float32", (12, 4))}
    seed = tf.constant([5, 6])
    mixed, nothing = aug.mixup()(x, None, seed)
    assert nothing is None
    for name, leaf in x.items():
        np.testing.assert_array_equal(mixed[name], aug.mixup()(leaf, None, seed)[0])


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 8.0])
def test_the_share_is_beta_distributed(alpha) -> None:
    seeds = tf.stack([tf.range(3000), tf.zeros(3000, tf.int32)], 1)
    draw = tf.function(lambda seed: mixing.beta(alpha, seed))
    values = tf.map_fn(draw, seeds, fn_output_signature=tf.float64).numpy()
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    # Mean 1/2, variance 1/(4(2α + 1)); the mean's error and the variance's, at four of theirs.
    variance = 1 / (4 * (2 * alpha + 1))
    assert values.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / 3000))
    assert np.var(values) == pytest.approx(variance, abs=4 * np.sqrt(2 / 3000) * variance)


def cutmix_by_hand(x, rows, share, middle, order):
    """Algorithm A1 of Yun et al. 2019."""
    _, height, width, _ = x.shape
    half_height = int(height * np.sqrt(1 - share)) // 2
    half_width = int(width * np.sqrt(1 - share)) // 2
    top, bottom = (np.clip(middle[0] + side, 0, height) for side in (-half_height, half_height))
    left, right = (np.clip(middle[1] + side, 0, width) for side in (-half_width, half_width))
    pasted = x.copy()
    pasted[:, top:bottom, left:right] = x[order][:, top:bottom, left:right]
    left_over = 1 - (bottom - top) * (right - left) / (height * width)
    return pasted, left_over * rows + (1 - left_over) * rows[order]


def test_cutmix() -> None:
    x, y = images("uint8", (12, 11, 14, 3)), np.arange(12) % 5
    rows, cut = np.eye(5), 0
    for number in range(10):
        seed = np.array([number, 2], "int32")
        step = draws.derived(seed[None], 2).numpy()
        middle = [drawn(step, 2, 11)[0, 0], drawn(step, 2, 14)[0, 1]]
        order = mixing.partners(12, tf.constant(seed)).numpy()
        share = float(mixing.beta(1.0, tf.constant(seed)))
        images_, labels = cutmix_by_hand(x, rows[y], share, middle, order)
        mixed, given = aug.cutmix(classes=5)(x, y, seed)
        np.testing.assert_array_equal(mixed, images_)
        np.testing.assert_allclose(given, labels, atol=1e-6)
        flat, _ = aug.cutmix()(x[..., 0], None, seed)
        np.testing.assert_array_equal(flat, images_[..., 0])
        cut += (images_ != x).any()
    assert cut > 5


@pytest.mark.parametrize(
    "y",
    [
        np.array([0, 1, 2, 0]),
        np.array([[0], [1], [2], [0]], "uint8"),
        np.eye(3, dtype="int64")[[0, 1, 2, 0]],
    ],
    ids=["numbers", "a column", "whole rows"],
)
def test_labels_become_rows(y) -> None:
    x, seed = images()[:4], [1, 2]
    _, expected = aug.cutmix(classes=3)(x, np.eye(3, dtype="float32")[[0, 1, 2, 0]], seed)
    _, labels = aug.cutmix(classes=3)(x, y, seed)
    np.testing.assert_array_equal(labels, expected)


# Several as one


def test_a_chain_gives_each_its_own_seed() -> None:
    x = tf.constant(images())
    first, second = aug.shifts(2), aug.flips()
    expected = second.batch(first.batch(x, draws.derived(SEEDS, 0)), draws.derived(SEEDS, 1))
    np.testing.assert_array_equal(aug.chain(first, second).batch(x, SEEDS), expected)


def test_a_chain_takes_functions_of_one_s_own() -> None:
    def inverted(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return 255 - image

    x = tf.constant(images())
    both = aug.chain(inverted, aug.flips())
    expected = aug.flips().batch(255 - x, draws.derived(SEEDS, 1))
    np.testing.assert_array_equal(both.batch(x, tf.constant(SEEDS)), expected)
    assert repr(both) == "chain(inverted, flips())"


def test_a_chain_of_batches() -> None:
    x, y, seed = images(), np.eye(12, dtype="float32"), tf.constant([3, 4])
    seeds = [draws.derived(seed[None], number)[0] for number in range(2)]
    expected = aug.mixup()(*aug.cutmix()(x, y, seeds[0]), seeds[1])
    for one, other in zip(aug.chain(aug.cutmix(), aug.mixup())(x, y, seed), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    own = aug.chain(lambda x, y, seed: (x, y), aug.mixup())
    np.testing.assert_array_equal(own(x, y, seed)[0], aug.mixup()(x, y, seeds[1])[0])


# What is refused

X = np.zeros((4, 6, 6, 1), "float32")
REFUSED = {
    "flips": (lambda: aug.flips(1), TypeError, "`vertical` must be True or False"),
    "shifts": (lambda: aug.shifts(0), ValueError, "`pixels` must be a whole number"),
    "window": (lambda: aug.crops(0, 3), ValueError, "`height` must be a whole number"),
    "width": (lambda: aug.crops(3, 1.5), ValueError, "`width` must be a whole number"),
    "padding": (lambda: aug.crops(3, 3, -1), ValueError, "`padding` must be 0 or more"),
    "no padding": (lambda: aug.crops(3, 3, True), ValueError, "`padding` must be 0 or more"),
    "no degrees": (lambda: aug.rotations("10"), TypeError, "`degrees` must be a number"),
    "degrees": (lambda: aug.rotations(0), ValueError, "`degrees` must be positive"),
    "too far": (lambda: aug.rotations(181), ValueError, "`degrees` must be at most 180"),
    "stddev": (lambda: aug.noise(0), ValueError, "`stddev` must be positive"),
    "amount": (lambda: aug.brightness(1.5), ValueError, "`amount` must be between 0 and 1"),
    "range": (lambda: aug.contrast(0.5, (1, 0)), ValueError, "`value_range` must be .low, high."),
    "one number": (lambda: aug.contrast(0.5, 255), ValueError, "`value_range` must be"),
    "alpha": (lambda: aug.mixup(0), ValueError, "`alpha` must be positive"),
    "classes": (lambda: aug.cutmix(classes=2.0), ValueError, "`classes` must be a whole number"),
    "no chain": (aug.chain, ValueError, "A chain needs a function"),
    "a list": (lambda: aug.chain([aug.flips()]), TypeError, "of the chain cannot be called"),
    "kinds": (
        lambda: aug.chain(aug.flips(), aug.mixup()),
        ValueError,
        "of an example and of a batch",
    ),
    "a vector": (
        lambda: aug.flips()(X[0, 0, :, 0], [1, 2]),
        ValueError,
        "`flips` takes an image of",
    ),
    "a dict": (lambda: aug.shifts(1)({"a": X[0]}, [1, 2]), TypeError, "`shifts` takes one image"),
    "too large": (lambda: aug.crops(9, 6)(X[0], [1, 2]), ValueError, "larger than the image"),
    "whole numbers": (
        lambda: aug.noise(1)(X[0].astype("int32"), [1, 2]),
        TypeError,
        "`noise` takes numbers that can be changed a little",
    ),
    "a tuple": (lambda: aug.contrast(0.1)((X[0], X[0]), [1, 2]), TypeError, "takes one tensor"),
    "mixed text": (
        lambda: aug.mixup()(np.array(["a", "b"]), None, [1, 2]),
        TypeError,
        "`mixup` takes numbers",
    ),
    "vectors": (
        lambda: aug.cutmix()(X[:, 0, :, 0], None, [1, 2]),
        ValueError,
        "`cutmix` takes an image",
    ),
    "unknown": (lambda: aug.mixup()(X, np.arange(4), [1, 2]), ValueError, "does not know how many"),
    "other rows": (
        lambda: aug.mixup(classes=3)(X, np.zeros((4, 5), int), [1, 2]),
        ValueError,
        "do not fit `mixup`",
    ),
    "a label": (
        lambda: aug.mixup(classes=3)(X, np.arange(4), [1, 2]),
        tf.errors.InvalidArgumentError,
        "not below mixup's classes=3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case) -> None:
    call, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        call()


def test_a_window_is_measured_where_the_size_is_known_late() -> None:
    crop = tf.function(
        aug.crops(9, 6),
        input_signature=[tf.TensorSpec((None, None, 1)), tf.TensorSpec(2, tf.int32)],
    )
    assert crop(tf.zeros((9, 8, 1)), [1, 2]).shape == (9, 6, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than the image"):
        crop(tf.zeros((6, 6, 1)), [1, 2])
