"""The networks of the papers: plain builders of Keras models that return logits.

Every builder takes the shape of one input, the number of outputs and a seed for the initial weights.
"""

from __future__ import annotations

import keras
from keras import layers

from kerasdef import checks
from kerasdef.models.blocks import Denoising, Orthonormal
from kerasdef.runs.seeds import derive


def _seeds(seed: int):
    """An endless supply of different initializer seeds."""
    checks.non_negative_int("seed", seed)
    # from the largest seeds on, a thousand times as much is more than the backends take
    count = seed * 1000 if seed < 2_000_000 else derive(seed, "network") // 1000 * 1000
    while True:
        count += 1
        yield count


def _start(name: str, input_shape, smallest: int) -> list:
    shape = tuple(int(s) for s in input_shape)
    if len(shape) != 3 or min(shape[:2]) < smallest:
        raise ValueError(
            f"`input_shape` of {name} must be (height, width, channels), at least {smallest}x{smallest}. "
            f"Received: input_shape={shape}"
        )
    return [keras.Input(shape)]


def _eat(name, input_shape, outputs, seed, activation, filters, pools, dense, smallest) -> keras.Sequential:
    """Table 1 of the mia paper: 3x3 convolutions, 2x2 pools with stride 1, dense layers of 100."""
    checks.positive_int("outputs", outputs)
    seeds = _seeds(seed)

    def he():
        return keras.initializers.HeUniform(seed=next(seeds))

    stack = _start(name, input_shape, smallest)
    for count in filters:
        stack.append(layers.Conv2D(count, 3, activation=activation, kernel_initializer=he()))
        stack += [layers.MaxPooling2D(2, strides=1) for _ in range(pools)]
    stack.append(layers.Flatten())
    stack += [layers.Dense(100, activation=activation, kernel_initializer=he()) for _ in range(dense)]
    stack.append(layers.Dense(outputs, kernel_initializer=he()))
    return keras.Sequential(stack, name=name)


def target_dnn(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Sequential:
    """Undefended target: conv 32, pool, dense 100, ReLU.

    Args:
        input_shape: (height, width, channels), at least 4x4.
        outputs: Number of classes.
        seed: Seed of the initial weights.

    References: mia paper, table 1.
    """
    return _eat("target_dnn", input_shape, outputs, seed, "relu", (32,), 1, 1, 4)


def eat1(input_shape, outputs: int = 11, *, seed: int = 0) -> keras.Sequential:
    """EAT model 1: conv 32, pool, dense 100, GELU. Arguments as in `target_dnn`; mia paper, table 1."""
    return _eat("eat1", input_shape, outputs, seed, "gelu", (32,), 1, 1, 4)


def eat2(input_shape, outputs: int = 11, *, seed: int = 0) -> keras.Sequential:
    """EAT model 2: conv 32, two pools, three dense 100, GELU. Arguments as in `target_dnn`; mia paper, table 1."""
    return _eat("eat2", input_shape, outputs, seed, "gelu", (32,), 2, 3, 5)


def eat3(input_shape, outputs: int = 11, *, seed: int = 0) -> keras.Sequential:
    """EAT model 3: conv 64 and conv 32, each with a pool, three dense 100, GELU. As `target_dnn`; table 1."""
    return _eat("eat3", input_shape, outputs, seed, "gelu", (64, 32), 1, 3, 7)


def _cnn(name, input_shape, outputs, seed, *, beta=None, denoise=None) -> keras.Sequential:
    """The CNN of the iar paper, and what other papers put into it."""
    checks.positive_int("outputs", outputs)
    seeds = _seeds(seed)

    def kernel(size):
        if beta is None:
            return {"kernel_initializer": keras.initializers.GlorotUniform(seed=next(seeds))}
        # starts where the constraint leads to
        start = keras.initializers.Orthogonal(gain=1 / size, seed=next(seeds))
        return {"kernel_initializer": start, "kernel_constraint": Orthonormal(beta)}

    def denoising():
        return [] if denoise is None else [Denoising(denoise)]

    stack = [
        *_start(name, input_shape, 8),
        layers.Conv2D(32, 3, padding="same", activation="relu", **kernel(3)),
        layers.MaxPooling2D(2),
        *denoising(),
        layers.Conv2D(64, 3, padding="same", activation="relu", **kernel(3)),
        *denoising(),
        layers.MaxPooling2D(2),
        layers.Dropout(0.25, seed=next(seeds)),
        layers.Flatten(),
        layers.Dense(1024, activation="relu", **kernel(1)),
        layers.Dense(outputs, kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds))),
    ]
    return keras.Sequential(stack, name=name)


def cnn11(input_shape, outputs: int = 11, *, seed: int = 0) -> keras.Sequential:
    """CNN of the iar paper: conv 32, pool, conv 64, pool, dropout 0.25, dense 1024. Arguments as in `target_dnn`.

    References: iar paper, section on the model.
    """
    return _cnn("cnn11", input_shape, outputs, seed)


def parseval_cnn(input_shape, outputs: int = 10, *, seed: int = 0, beta: float = 0.0003) -> keras.Sequential:
    """The layers of `cnn11` with `Orthonormal` kernels, all but the last.

    Args:
        input_shape: (height, width, channels), at least 8x8.
        outputs: Number of classes.
        seed: Seed of the initial weights.
        beta: Step of the constraint (paper: 0.0003). Few epochs with large steps, as of Adam, outrun the paper's value;
            0.1 holds the kernels there, at a cost in accuracy.

    References: Cisse et al., 2017, https://arxiv.org/abs/1704.08847.
    """
    return _cnn("parseval_cnn", input_shape, outputs, seed, beta=beta)


def denoising_cnn(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Sequential:
    """The layers of `cnn11` with two non-local `Denoising` blocks. Arguments as in `target_dnn`, from 8x8.

    Both stand at half the size of the image, behind the first pool and behind the second convolution: at full size
    the first one would cost sixteen times as much.

    References: Xie et al., 2019, https://arxiv.org/abs/1812.03411.
    """
    return _cnn("denoising_cnn", input_shape, outputs, seed, denoise="nonlocal")


def _vgg(name, input_shape, outputs, seed, blocks, dense) -> keras.Sequential:
    checks.positive_int("outputs", outputs)
    seeds = _seeds(seed)

    def he():
        return keras.initializers.HeUniform(seed=next(seeds))

    stack = _start(name, input_shape, 8)
    side = min(int(s) for s in input_shape[:2])
    for convolutions, filters in blocks:
        for _ in range(convolutions):
            stack.append(layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer=he()))
            stack += [layers.BatchNormalization(), layers.ReLU()]
        if side >= 2:  # small images run out of pixels before VGG runs out of pools
            stack.append(layers.MaxPooling2D(2))
            side //= 2
    stack.append(layers.Flatten())
    stack += [layers.Dense(dense, activation="relu", kernel_initializer=he()) for _ in range(2)]
    stack.append(layers.Dense(outputs, kernel_initializer=he()))
    return keras.Sequential(stack, name=name)


def vgg7(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Sequential:
    """VGG with four convolutions in two blocks and three dense layers, batch-normalized.

    Args:
        input_shape: (height, width, channels), at least 8x8; pools that would leave no pixel are left out.
        outputs: Number of classes.
        seed: Seed of the initial weights.

    References: Simonyan and Zisserman, 2015, cut to seven layers; batch normalization as usual at 32x32.
    """
    return _vgg("vgg7", input_shape, outputs, seed, ((2, 64), (2, 128)), 256)


def vgg16(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Sequential:
    """VGG16 (configuration D), batch-normalized, dense layers of 512 for small images. Arguments as in `vgg7`.

    References: Simonyan and Zisserman, 2015, table 1.
    """
    blocks = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    return _vgg("vgg16", input_shape, outputs, seed, blocks, 512)


def _resnet(name, input_shape, outputs, seed, stages, bottleneck) -> keras.Model:
    checks.positive_int("outputs", outputs)
    seeds = _seeds(seed)

    def conv(z, filters, size, stride=1):
        he = keras.initializers.HeNormal(seed=next(seeds))
        z = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer=he)(z)
        return layers.BatchNormalization()(z)

    def block(z, filters, stride):
        width = 4 * filters if bottleneck else filters
        short = z if stride == 1 and z.shape[-1] == width else conv(z, width, 1, stride)
        if bottleneck:
            z = layers.ReLU()(conv(z, filters, 1))
            z = conv(layers.ReLU()(conv(z, filters, 3, stride)), width, 1)
        else:
            z = conv(layers.ReLU()(conv(z, filters, 3, stride)), width, 3)
        return layers.ReLU()(layers.Add()([z, short]))

    (inputs,) = _start(name, input_shape, 8)
    z = layers.ReLU()(conv(inputs, stages[0][1], 3))
    for i, (count, filters) in enumerate(stages):
        for j in range(count):
            z = block(z, filters, 2 if i and not j else 1)
    z = layers.GlobalAveragePooling2D()(z)
    logits = layers.Dense(outputs, kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)))(z)
    return keras.Model(inputs, logits, name=name)


def resnet32(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Model:
    """ResNet32 for small images: three stages of five basic blocks, 16, 32 and 64 filters.

    Args:
        input_shape: (height, width, channels), at least 8x8.
        outputs: Number of classes.
        seed: Seed of the initial weights.

    References: He et al., 2016, section 4.2 (n = 5).
    """
    return _resnet("resnet32", input_shape, outputs, seed, ((5, 16), (5, 32), (5, 64)), False)


def resnet50(input_shape, outputs: int = 10, *, seed: int = 0) -> keras.Model:
    """ResNet50 with a 3x3 stem of stride 1 for small images. Arguments as in `resnet32`.

    References: He et al., 2016, table 1 (bottleneck blocks 3, 4, 6, 3).
    """
    return _resnet("resnet50", input_shape, outputs, seed, ((3, 64), (4, 128), (6, 256), (3, 512)), True)


def preact_resnet18(input_shape, outputs: int = 10, *, seed: int = 0, width: int = 64) -> keras.Model:
    """Pre-activation ResNet18 with a 3x3 stem of stride 1 for small images: four stages of two blocks.

    Args:
        input_shape: (height, width, channels), at least 8x8.
        outputs: Number of classes.
        seed: Seed of the initial weights.
        width: Filters of the first stage; each later stage has twice those of the one before.

    References: He et al., 2016, https://arxiv.org/abs/1603.05027 (figure 4 e); depths of He et al., 2016, table 1.
    """
    checks.positive_int("outputs", outputs)
    checks.positive_int("width", width)
    seeds = _seeds(seed)

    def conv(z, filters, size, stride=1):
        he = keras.initializers.HeNormal(seed=next(seeds))
        return layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer=he)(z)

    def activated(z):
        return layers.ReLU()(layers.BatchNormalization()(z))

    def block(z, filters, stride):
        ready = activated(z)
        short = z if stride == 1 and z.shape[-1] == filters else conv(ready, filters, 1, stride)
        return layers.Add()([conv(activated(conv(ready, filters, 3, stride)), filters, 3), short])

    (inputs,) = _start("preact_resnet18", input_shape, 8)
    z = conv(inputs, width, 3)
    for i in range(4):
        z = block(block(z, width * 2**i, 2 if i else 1), width * 2**i, 1)
    z = layers.GlobalAveragePooling2D()(activated(z))
    logits = layers.Dense(outputs, kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)))(z)
    return keras.Model(inputs, logits, name="preact_resnet18")


_PAPERS = (target_dnn, eat1, eat2, eat3, cnn11, vgg7, vgg16, resnet32, resnet50)
_ROBUST = (parseval_cnn, denoising_cnn, preact_resnet18)  # what adversarial training is compared with, and done on
NETWORKS = {f.__name__: f for f in _PAPERS + _ROBUST}


def build(name: str, input_shape, outputs: int, *, seed: int = 0) -> keras.Model:
    """Build a network by its name; the error names the nearest right one."""
    return NETWORKS[checks.one_of("network", name, NETWORKS)](input_shape, outputs, seed=seed)
