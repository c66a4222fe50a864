"""All ops run in a process without Triton, and tables of launch configurations can be imported."""

import triton_interpreter


def test_ops_run_without_triton() -> None:
    triton_interpreter.run_without_triton(
        "import andfast.kernels.degradation_block.configs, andfast.kernels.degradation_block.saved\n"
        "import andfast.kernels.residual_dense_block.configs, andfast.kernels.upsampled_convolution.configs\n"
        "from andfast.adversary import sample_identity\n"
        "from andfast.nn import DegradationNetwork\n"
        "f.degradation_block(torch.rand(1, 3, 4, 4), torch.rand(5, 3, 3, 3), 0.5)\n"
        "theta = sample_identity(1, hr_size=8, channels=8)\n"
        "theta.weights[0].requires_grad_()\n"
        "DegradationNetwork().closed_form_first_step(torch.rand(1, 3, 8, 8), theta).sum().backward()\n"
        "x = [[torch.rand(2, 3)]]\n"
        "f.ascent_step(x, x, x, radii=[1.0], step_size=0.3)\n"
        "f.mean_distance(torch.rand(2, 3, requires_grad=True), torch.rand(2, 3)).backward()\n"
        "w = [torch.rand(2 if k < 4 else 3, 3 + 2 * k, 3, 3) for k in range(5)]\n"
        "f.residual_dense_block(torch.rand(1, 3, 4, 4), w, [one[:, 0, 0, 0] for one in w])\n"
        "f.upsampled_convolution(torch.rand(1, 3, 4, 4), torch.rand(2, 3, 3, 3), torch.rand(2))\n"
        "f.blur_pool(torch.rand(1, 3, 4, 4), 2)"
    )
