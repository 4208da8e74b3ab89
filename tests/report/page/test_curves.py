from pcd_hub.report.page.curves import find_curves


def test_known_curves_come_first_under_their_titles_and_unknown_ones_under_their_names():
    metrics = [{"step": n, "new_monitor": n, "lr": 0.1, "loss": 2.0 - n} for n in (0.0, 1.0, 2.0)]
    held_out = [{"step": n, "cka": 50.0 + n, "loss": 3.0} for n in (0.0, 10.0)]
    probed = [{"step": n, "mean_iou": 20.0 + n} for n in (0.0, 10.0)]
    curves = find_curves(metrics, {"held_out": held_out, "probe_data": probed})
    assert [curve.title for curve in curves] == [
        "Loss",
        "Mean IoU of a linear probe on labelled images, %",
        "Loss on held-out images",
        "CKA with the teacher on held-out images, %",
        "Learning rate",
        "new monitor",
    ]
    assert curves[0].values == [2.0, 1.0, 0.0]
    assert curves[3].steps == [0, 10]
    assert [curve.start for curve in curves] == [None, 20.0, None, 50.0, None, None]


def test_the_start_is_that_before_the_first_step():
    later = [{"step": n, "mean_iou": 20.0 + n} for n in (5.0, 10.0)]
    (curve,) = find_curves([], {"probe_data": later})
    assert curve.start is None


def test_a_value_that_is_missing_in_some_lines_keeps_its_steps():
    metrics = [{"step": 0.0, "loss": 1.0}, {"step": 1.0}, {"step": 2.0, "loss": 0.5}]
    assert find_curves(metrics, {})[0].steps == [0, 2]


def test_one_point_is_no_curve():
    assert find_curves([{"step": 0.0, "loss": 1.0}], {}) == ()
