"""Attacks of ART and cleverhans as attacks of kerasdef, and models of kerasdef in ART."""

import keras
import numpy as np
import pytest
from helpers import quiet

from kerasdef import models
from kerasdef.attacks import BIM, FGSM, Evade, Hit, Targeted
from kerasdef.attacks.adapters import as_art, from_art, from_cleverhans
from kerasdef.attacks.worst_of import Restarts, WorstOf
from kerasdef.testing import check_attack, linear_model

if keras.backend.backend() != "tensorflow":

    @pytest.mark.parametrize("make", [as_art, from_art, from_cleverhans])
    def test_the_adapters_need_tensorflow(make):
        with pytest.raises(
            ValueError, match=f"`{make.__name__}` needs the TensorFlow backend. Received: backend='jax'"
        ):
            make(linear_model(np.eye(2)))

    pytest.skip("ART and cleverhans attack TensorFlow models", allow_module_level=True)

from art.attacks import evasion
from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

CLOSE = 1e-5  # float32 sums in another order


def wrong(model, x, y):
    return models.predict_logits(model, x).argmax(axis=1) != y


@pytest.fixture(scope="module")
def few(digits):
    return digits[2][:40], digits[3][:40]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (from_art(evasion.ProjectedGradientDescent, eps=0.1, eps_step=0.05, max_iter=2), "budget"),
        (
            from_cleverhans(
                projected_gradient_descent, eps=0.1, eps_iter=0.05, nb_iter=2, norm=np.inf, rand_init=False
            ),
            "budget",
        ),
        (from_cleverhans(fast_gradient_method, eps=0.1, norm=np.inf), "budget"),
    ],
    ids=["art pgd", "cleverhans pgd", "cleverhans fgsm"],
)
def test_attacks_of_others_keep_our_contract(attack, kind):
    check_attack(attack, norm="linf", eps=0.1, kind=kind)


def test_they_give_the_images_that_ours_give(digits_model, few):
    ours = quiet(BIM(eps=0.1, steps=5, step_size=0.03, best=False, early_stop=False), digits_model, *few)
    theirs = [
        from_art(evasion.BasicIterativeMethod, eps=0.1, eps_step=0.03, max_iter=5),
        from_cleverhans(projected_gradient_descent, eps=0.1, eps_iter=0.03, nb_iter=5, norm=np.inf, rand_init=False),
    ]
    for attack in theirs:
        found = quiet(attack, digits_model, *few)
        close = np.abs(found - ours) <= CLOSE
        assert close.mean() > 0.99  # a gradient of almost 0 may have either sign
        before = wrong(digits_model, *few)
        np.testing.assert_array_equal(found[before], few[0][before])


def test_art_sees_logits_behind_a_softmax(digits_model, few):
    softmax = keras.Sequential([keras.Input((8, 8, 1)), *digits_model.layers, keras.layers.Softmax()])
    classifier = as_art(softmax, bounds=(0, 1))
    np.testing.assert_allclose(classifier.predict(few[0]), models.predict_logits(digits_model, few[0]), atol=1e-4)
    assert classifier.nb_classes == 10
    assert classifier.input_shape == (8, 8, 1)
    np.testing.assert_array_equal(classifier.clip_values, [0, 1])
    loss = classifier.compute_loss(few[0], np.eye(10)[few[1]])
    logits = models.predict_logits(digits_model, few[0]).astype("float64")
    wanted = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(40), few[1]]
    np.testing.assert_allclose(np.mean(loss), wanted.mean(), rtol=1e-4)  # float32


def test_targets_are_passed_on(digits_model, few):
    x, y = few
    target = (y + 1) % 10
    attacks = [
        from_art(evasion.ProjectedGradientDescent, eps=0.3, eps_step=0.05, max_iter=10),
        from_cleverhans(projected_gradient_descent, eps=0.3, eps_iter=0.05, nb_iter=10, norm=np.inf, rand_init=False),
    ]
    for attack in attacks:
        result = Targeted(attack, target).run(digits_model, x, y, progress=False)
        np.testing.assert_array_equal(result.success, ~wrong(digits_model, result.x_adv, target))
        assert result.success.mean() > 0.5


def test_a_goal_that_the_other_cannot_take_is_an_error():
    with pytest.raises(ValueError, match="`goal` must be one that DeepFool can take"):
        from_art(evasion.DeepFool).with_goal(Hit())
    with pytest.raises(ValueError, match="can take"):
        from_art(evasion.ProjectedGradientDescent).with_goal(Evade(3))
    assert from_art(evasion.ProjectedGradientDescent).with_goal(Hit()).goal == Hit()


def test_a_minimal_attack_finds_small_changes(digits_model, few):
    x, y = few[0][:12], few[1][:12]
    attack = from_art(evasion.DeepFool, kind="minimal", max_iter=20)
    assert attack.kind == "minimal"
    result = attack.run(digits_model, x, y, progress=False)
    assert result.success.mean() > 0.8
    assert np.linalg.norm((result.x_adv - x).reshape(12, -1), axis=1).max() < 3.0


def test_seeds_decide_and_the_global_generator_of_numpy_is_put_back(digits_model, few):
    attacks = [
        from_art(evasion.ProjectedGradientDescent, eps=0.1, eps_step=0.02, max_iter=2, num_random_init=1),
        from_cleverhans(projected_gradient_descent, eps=0.1, eps_iter=0.02, nb_iter=2, norm=np.inf, rand_init=True),
    ]
    for attack in attacks:
        before = np.random.get_state()[1].copy()  # noqa: NPY002 - the generator that ART draws from
        found = [quiet(attack, digits_model, *few, seed=s) for s in (1, 1, 2)]
        np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
        np.testing.assert_array_equal(found[0], found[1])
        assert np.any(found[0] != found[2])


def test_they_work_in_wrappers(digits_model, few):
    attack = from_art(evasion.ProjectedGradientDescent, eps=0.05, eps_step=0.01, max_iter=2, num_random_init=1)
    alone = wrong(digits_model, quiet(attack, digits_model, *few), few[1])
    several = wrong(digits_model, quiet(WorstOf((Restarts(attack, 4), FGSM(eps=0.05))), digits_model, *few), few[1])
    assert (several >= alone).all()
    assert several.sum() > alone.sum()


def test_settings_are_shown_and_an_unknown_one_is_an_error_that_names_the_nearest():
    attack = from_art(evasion.ProjectedGradientDescent, eps=0.1, max_iter=3)
    assert repr(attack) == (
        "from_art(ProjectedGradientDescent, eps=0.1, max_iter=3, kind='budget', bounds=(0.0, 1.0), goal=Misclassify())"
    )
    assert hash(attack) == hash(attack)
    with pytest.raises(ValueError, match="Did you mean 'max_iter'"):
        from_art(evasion.ProjectedGradientDescent, maxiter=3)
    with pytest.raises(ValueError, match="Did you mean 'eps_iter'"):
        from_cleverhans(projected_gradient_descent, epsiter=3)
    with pytest.raises(ValueError, match="`targeted` is set by the call"):
        from_art(evasion.ProjectedGradientDescent, targeted=True)
    with pytest.raises(ValueError, match="`clip_min` is set by the call"):
        from_cleverhans(fast_gradient_method, clip_min=0.0)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        from_art(evasion.DeepFool, kind="large")
