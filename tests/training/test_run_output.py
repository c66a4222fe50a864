"""Text of the progress bar."""

from andfast.training.run_output import describe


def test_describe() -> None:
    timing = {"images_per_second": 38.14, "ascent_share": 0.781}
    values = {"loss": 0.05123, "lr_psnr": 24.07, "loss_gain": 0.0123, "lr": 2.5e-5}
    assert describe(values, timing) == "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, gain +0.0123, lr 2.5e-05"
    followed = {**values, "radius_factor": 0.8712}
    assert ", LR 24.1 dB, radii x0.871, gain +0.0123, " in describe(followed, timing)
    del values["loss_gain"]
    assert describe(values, timing) == "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, lr 2.5e-05"
