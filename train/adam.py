"""torch's Adam in a process that compiles nothing."""

import inspect

import torch


class Adam(torch.optim.Adam):
    """The same Adam, which does not import torch's compiler: that takes each process most of a second of CPU.

    torch wraps these methods in order to keep the compiler out of them, and imports it to do so. Here they stand
    as they are within the wrapping.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
