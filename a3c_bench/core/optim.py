"""Optimisers as the papers wrote them, over one flat vector of parameters."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

# Values that RMSProp steps at once on a CPU: the cache still has them when the next operation wants them.
_BLOCK = 2**17


def _leave_the_compiler_out() -> None:
    """Keeps torch.compile's front end, a third of the imports of a run, out of runs that compile nothing.

    torch 2.13 wraps these methods so that it never traces them, and imports it when the first of them is called. Nobody
    here compiles what calls them: each is told that there is nothing more to be done for it.
    """
    optimizer = torch.optim.Optimizer
    for method in (optimizer.add_param_group, optimizer.zero_grad, optimizer.state_dict, optimizer.load_state_dict):
        wrapped = getattr(method, "__wrapped__", None)
        if wrapped is not None and not hasattr(wrapped, "__dynamo_disable"):
            setattr(wrapped, "__dynamo_disable", wrapped)


_leave_the_compiler_out()


class FlatParameters:
    """All parameters of a module as one vector, and their gradients as another.

    The module's parameters become views of `values`, their gradients views of `gradients`: an optimiser step is then a
    handful of operations whatever the number of layers, and sharing or copying a network is one tensor.

    Args:
        module: its parameters are copied into a new vector, unless there is one already:
        values: [P], the parameters of a module of the same shape; this module shows them from now on.
    """

    def __init__(self, module: nn.Module, values: Tensor | None = None) -> None:
        parameters = list(module.parameters())
        n_values = sum(p.numel() for p in parameters)
        self.values = nn.Parameter(parameters[0].new_empty(n_values) if values is None else values)
        self.gradients_and_weight = self.values.detach().new_zeros(n_values + 1)  # what ranks add up at once
        self.gradients = self.gradients_and_weight[:-1]
        self.values.grad = self.gradients
        start = 0
        for parameter in parameters:
            place = (parameter.shape, parameter.stride(), start)  # strides: channels-last weights stay so
            view = self.values.data.as_strided(*place)
            if values is None:
                view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradients.as_strided(*place)
            start += parameter.numel()

    def zero_gradients(self) -> None:
        """Sets all gradients to 0 in place, so that the views stay valid."""
        self.gradients.zero_()

    def clip_gradients(self, max_norm: float | None) -> Tensor:
        """Scales the gradients so that their global L2 norm is at most max_norm; gives the norm before, a scalar."""
        norm = torch.linalg.vector_norm(self.gradients)
        if max_norm is not None:
            self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


class GradientVariance:
    """The variance of a gradient from one batch to the next, summed over its entries (the trace of its covariance).

    Of consecutive gradients g and g' that are independent and alike in distribution, |g - g'|^2 / 2 is an unbiased
    estimate. One update changes the distribution little; batches that follow each other are not quite independent.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None

    def add(self, gradients: Tensor) -> dict[str, Tensor]:
        """The estimate from these gradients [P] and those before, as `gradient_variance`; nothing for the first."""
        previous = self._previous
        if previous is None:
            self._previous = gradients.clone()
            return {}
        variance = torch.sub(gradients, previous, out=previous).square_().sum() / 2.0
        previous.copy_(gradients)
        return {"gradient_variance": variance}


class SharedOptimizerState:
    """What an optimiser remembers (mean squares, moments), in memory that other processes may map; part of checkpoints.

    Args:
        optimizer: over one vector of parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        (parameter,) = optimizer.param_groups[0]["params"]
        self.tensors = dict(optimizer.state[parameter])
        if not self.tensors:  # Adam would make these in its first step
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.tensors = {"step": torch.zeros((), device=parameter.device)} | moments
        for tensor in self.tensors.values():
            tensor.share_memory_()

    def lend(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes an optimiser over one vector use, and change, these statistics."""
        (parameter,) = optimizer.param_groups[0]["params"]
        optimizer.state[parameter] = self.tensors

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics by name."""
        return self.tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over saved statistics, in place."""
        for key, tensor in self.tensors.items():
            tensor.copy_(state[key])


class RMSProp(torch.optim.Optimizer):
    """RMSProp without momentum, in the variants that the papers and their codes use.

        s <- decay s + (1 - decay) g^2             s starts at initial_square
        m <- decay m + (1 - decay) g               only if centered
        v  = s - m^2 if centered else s
        theta <- theta - lr g / sqrt(v + eps)      epsilon_inside_root (A3C, GA3C, PAAC, DQN)
        theta <- theta - lr g / (sqrt(v) + eps)    otherwise (torch.optim.RMSprop)

    Args:
        parameters: as for every torch optimiser.
        lr: learning rate.
        decay: of the running moments.
        epsilon: eps.
        epsilon_inside_root: where eps stands.
        initial_square: 0 (DeepMind, torch) or 1 (TensorFlow).
        centered: divide by an estimate of the standard deviation instead of the root mean square.

    `update` changes one parameter: what one compiles.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        decay: float = 0.99,
        epsilon: float = 0.1,
        epsilon_inside_root: bool = True,
        initial_square: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "epsilon": epsilon,
            "epsilon_inside_root": epsilon_inside_root,
            "initial_square": initial_square,
            "centered": centered,
        }
        super().__init__(parameters, defaults)
        self.update: Callable[[Tensor, Tensor, dict[str, Tensor], dict[str, Any]], None] = self._update_in_blocks
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["square"] = torch.full_like(parameter, initial_square, requires_grad=False)
                if centered:
                    state["mean"] = torch.zeros_like(parameter, requires_grad=False)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    @classmethod
    def _update_in_blocks(cls, parameter: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        flat = parameter.is_cpu and parameter.dim() == 1
        if not flat or len(parameter) <= _BLOCK or torch.compiler.is_compiling():
            cls._update(parameter, g, state, group)
            return
        parts = {key: torch.split(tensor, _BLOCK) for key, tensor in state.items()}
        gradients = torch.split(g, _BLOCK)
        for i, values in enumerate(torch.split(parameter, _BLOCK)):
            cls._update(values, gradients[i], {key: part[i] for key, part in parts.items()}, group)

    @staticmethod
    def _update(parameter: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        decay, epsilon = group["decay"], group["epsilon"]
        inside, outside = (epsilon, 0.0) if group["epsilon_inside_root"] else (0.0, epsilon)
        square = state["square"].mul_(decay).addcmul_(g, g, value=1.0 - decay)
        if group["centered"]:
            mean = state["mean"].lerp_(g, 1.0 - decay)
            variance = torch.addcmul(square, mean, mean, value=-1.0).clamp_(min=0.0)  # rounding may dip below 0
            denominator = variance.add_(inside).sqrt_()
        else:
            denominator = (square + inside).sqrt_()
        if outside:
            denominator.add_(outside)
        lr = group["lr"]
        if isinstance(lr, Tensor):  # `addcdiv_` takes a number, for which everybody would wait
            parameter.sub_((lr * g).div_(denominator))
        else:
            parameter.addcdiv_(g, denominator, value=-lr)


# torch wraps each optimiser's step for hooks and its profiler, which takes time. This says that it has done so already.
RMSProp.step.hooked = True  # type: ignore[attr-defined]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter group.

    On a GPU it is a tensor that stays where it is: filling it waits for nothing, and a captured graph reads it anew. On
    a CPU it is one if it was one before: what is compiled would be compiled again for each other number.
    """
    for group in optimizer.param_groups:
        device, present = group["params"][0].device, group["lr"]
        if isinstance(present, Tensor) and present.device == device:
            present.fill_(lr)
        elif device.type == "cpu":
            group["lr"] = lr
        else:  # the first time, or a checkpoint of another device was loaded
            group["lr"] = torch.full((), lr, device=device)
