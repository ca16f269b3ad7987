"""The arithmetic that a dry run counts."""

import torch

from ser.train.flops import FlopCounter


def test_two_operations_for_each_multiplication_of_a_product_and_its_gradients() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    weight = torch.randn(3, 2, requires_grad=True)

    with FlopCounter() as counter:
        product = x @ weight
        assert counter.flops == 2 * 5 * 3 * 2

        # What is no product counts nothing.
        total = product.tanh().sum()
        assert counter.flops == 2 * 5 * 3 * 2

        total.backward()

    assert counter.flops == 3 * 2 * 5 * 3 * 2
