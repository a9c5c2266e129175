"""Cross-validated probes: scikit-learn's numbers, honest folds, typed refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from interp.errors import BadInput
from probes.cross_validation import cross_validate
from probes.linear import ProbeSpec, fit_probes


def data(n: int = 180, d: int = 16, classes: int = 2, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two sites of another width; the labels follow the first one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * rng.uniform(0.2, 5, d) + 3
    scores = (x - 3) / x.std(0) @ rng.standard_normal((d, classes))
    return {"a": x, "b": rng.standard_normal((n, 2 * d))}, (scores + rng.gumbel(size=scores.shape)).argmax(1)


def logistic(strength: float, **options: Any) -> Any:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10, max_iter=1000, **options)
    )


def splitter(spec: ProbeSpec) -> StratifiedKFold:
    return StratifiedKFold(spec.folds, shuffle=True, random_state=spec.seed)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_predictions_are_those_of_a_scikit_learn_pipeline(classes: int, class_weight: Any) -> None:
    features, y = data(classes=classes)
    spec = ProbeSpec(strengths=(0.3,), tolerance=1e-9, class_weight=class_weight, seed=4)
    found = cross_validate(features, {"label": y, "other": 1 - (y > 0)}, spec)
    assert found.unsolved == 0
    for i, site in enumerate(found.sites):
        for name, labels in (("label", y), ("other", 1 - (y > 0))):
            own = [np.flatnonzero(found.fold == f) for f in range(spec.folds)]
            folds = [(np.setdiff1d(np.arange(len(y)), test), test) for test in own]
            pipeline = logistic(0.3, class_weight=class_weight)
            theirs = cross_val_predict(pipeline, features[site], labels, cv=folds, method="predict_proba")
            np.testing.assert_allclose(found.scores[name][i], theirs, atol=1e-6)
    expected = [test.tolist() for _, test in splitter(spec).split(features["a"], y)]
    assert [np.flatnonzero(found.fold == f).tolist() for f in range(spec.folds)] == expected


@pytest.mark.parametrize("classes", [2, 3])
def test_ridge_predicts_as_scikit_learns_ridge_classifier(classes: int) -> None:
    features, y = data(classes=classes)
    spec = ProbeSpec(kind="ridge", strengths=(0.1,), tolerance=1e-10)
    found = cross_validate(features, {"label": y}, spec)
    pipeline = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
    for i, site in enumerate(found.sites):
        theirs = cross_val_predict(pipeline, features[site], y, cv=splitter(spec))
        np.testing.assert_array_equal(found.scores["label"][i].argmax(1), theirs)
    assert not {"log_loss", "ece"} & set(found.frame.metric)
    with pytest.raises(BadInput, match="needs probabilities"):
        found.metric("log_loss", "label", "a")


def test_each_fold_chooses_its_strength_as_a_nested_grid_search_does() -> None:
    features, y = data(n=150, d=30)
    spec = ProbeSpec(strengths=(1.0, 1e-3, 1e-2, 1e-1), folds=4, inner_folds=3, tolerance=1e-9, seed=2)
    found = cross_validate(features, {"label": y}, spec)
    assert len(np.unique(found.chosen["label"])) > 1
    for i, site in enumerate(found.sites):
        for f in range(spec.folds):
            train = np.flatnonzero(found.fold != f)
            search = GridSearchCV(
                logistic(1.0),
                {"logisticregression__C": sorted(spec.strengths)},
                cv=StratifiedKFold(3, shuffle=True, random_state=spec.seed + 1 + f),
                scoring="neg_log_loss",
            ).fit(features[site][train], y[train])
            assert found.chosen["label"][i, f] == search.best_params_["logisticregression__C"]
            test = np.flatnonzero(found.fold == f)
            np.testing.assert_allclose(
                found.scores["label"][i][test], search.predict_proba(features[site][test]), atol=1e-6
            )


@pytest.mark.parametrize(
    "estimator", [RandomForestClassifier(20, random_state=42), LinearSVC(), RidgeClassifier(alpha=3.0)]
)
def test_any_scikit_learn_classifier_can_be_given(estimator: Any) -> None:
    features, y = data()
    spec = ProbeSpec(estimator=estimator)
    found = cross_validate(features, {"label": y}, spec)
    for i, site in enumerate(found.sites):
        theirs = cross_val_predict(make_pipeline(StandardScaler(), estimator), features[site], y, cv=splitter(spec))
        np.testing.assert_array_equal(found.scores["label"][i].argmax(1), theirs)
    assert found.probabilistic == hasattr(estimator, "predict_proba")
    assert spec.as_dict()["estimator"].startswith(type(estimator).__name__)


def test_a_planted_direction_is_read_and_noise_is_not() -> None:
    features, y = data(n=400)
    found = cross_validate(features, {"label": y})
    read, noise = found.metric("accuracy", "label", "a"), found.metric("accuracy", "label", "b")
    assert read.low > 0.7
    assert noise.low < 0.5 < noise.high or noise.estimate < 0.58
    assert read.low > noise.high
    assert set(found.frame.metric) == {"accuracy", "balanced_accuracy", "f1", "auc", "log_loss", "ece"}


def test_groups_never_sit_on_both_sides() -> None:
    features, y = data()
    groups = np.arange(len(y)) // 3
    found = cross_validate(features, {"label": y}, groups=groups)
    assert all(len(np.unique(found.fold[groups == g])) == 1 for g in np.unique(groups))


def test_a_feature_that_varies_only_outside_a_fold_spoils_nothing() -> None:
    features, y = data()
    found = cross_validate(features, {"label": y}, ProbeSpec(strengths=(1.0,)))
    x = features["a"].copy()
    x[:, 3] = np.where(found.fold == 2, np.arange(len(y)), 0.1)
    found = cross_validate({"a": x}, {"label": y}, ProbeSpec(strengths=(1.0,), tolerance=1e-9))
    assert found.unsolved == 0
    theirs = cross_val_predict(logistic(1.0), x, y, cv=splitter(found.spec), method="predict_proba")
    np.testing.assert_allclose(found.scores["label"][0], theirs, atol=1e-6)


def test_a_probe_of_all_examples_reads_the_activations_as_they_are() -> None:
    for classes in (2, 3):
        features, y = data(classes=classes)
        names = np.array(["x", "y", "z"])[y]
        probe = fit_probes(features, names, 0.5, ProbeSpec(tolerance=1e-9))["a"]
        theirs = logistic(0.5).fit(features["a"], names)
        np.testing.assert_array_equal(probe.predict(features["a"]), theirs.predict(features["a"]))
        z = theirs.decision_function(features["a"])
        np.testing.assert_allclose(probe.decision(features["a"]), z[:, None] if z.ndim == 1 else z, atol=1e-5)


def test_single_precision_is_asked_for_by_name() -> None:
    features, y = data()
    double, single = (
        cross_validate(features, {"label": y}, ProbeSpec(dtype=dtype, tolerance=1e-5)).scores["label"]  # type: ignore[arg-type]
        for dtype in ("float64", "float32")
    )
    assert 0 < np.abs(double - single).max() < 1e-2


@pytest.mark.parametrize(
    ("labels", "spec", "what"),
    [
        ([0] * 40, {}, "only the class"),
        ([0] * 37 + [1] * 3, {}, "the rarest class of 'label' has 3 of 40"),
        ([0, 1] * 19, {}, r"shape \(40, 4\) for 38 labels"),
        ([0, 1] * 20, {"folds": 1}, "at least 2 folds"),
        ([0.0, float("nan")] * 20, {}, "lacks labels"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused(labels: list[Any], spec: dict[str, Any], what: str) -> None:
    x = np.random.default_rng(0).standard_normal((40, 4))
    with pytest.raises(BadInput, match=what):
        cross_validate({"a": x}, {"label": labels}, ProbeSpec(**spec))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_activations_that_are_no_numbers_are_refused_by_site_and_row(bad: float) -> None:
    x = np.random.default_rng(0).standard_normal((40, 4))
    x[7, 2] = bad
    with pytest.raises(BadInput, match=r"mlp_in\.3 has NaN or infinite activations in 1 of 40 examples, the first of"):
        cross_validate({"mlp_in.3": x}, {"label": [0, 1] * 20})


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"kind": "lasso"}, "no probe 'lasso'"),
        ({"strengths": ()}, "at least one"),
        ({"strengths": (1.0, -1.0)}, "positive"),
        ({"class_weight": "heavy"}, "heavy"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(spec: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        ProbeSpec(**spec)
