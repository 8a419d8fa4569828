"""SegFormer as NVlabs and mmsegmentation name it, in plain PyTorch: what their files come from.

Written from the paper's formulas and the published names of tensors, module by module, without
anything of the package; the references of test_weights.py and test_convert.py.
"""

import torch
import torch.nn.functional as F
from torch import nn

B0 = {"widths": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "heads": (1, 2, 5, 8), "decoder": 256}
SMALL = {"widths": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "heads": (1, 2, 5, 8), "decoder": 32}
ODD = {  # no published size: other widths, heads, reductions, expansion and three stages
    "widths": (12, 24, 48),
    "depths": (1, 3, 2),
    "heads": (1, 2, 4),
    "decoder": 20,
    "reductions": (4, 2, 1),
    "ratio": 3,
    "channels": 5,
}


class Encoder(nn.Module):
    """What both have in common; subclasses build modules under their names."""

    def __init__(self, widths, depths, heads, reductions=(8, 4, 2, 1), ratio=4, channels=3):
        super().__init__()
        self.depths, self.heads, self.reductions = depths, heads, reductions
        inputs = (channels, *widths)
        for stage, width in enumerate(widths):
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            conv = nn.Conv2d(inputs[stage], width, kernel, stride, kernel // 2)
            self.add_stage(stage, conv, width, ratio)


def rows(x):  # (B, C, H, W) -> (B, H W, C)
    return x.flatten(2).transpose(1, 2)


def maps(x, size):  # (B, H W, C) -> (B, C, H, W)
    return x.transpose(1, 2).unflatten(2, size)


# ----------------------------------------------------------------------------------------- NVlabs


class PatchEmbed(nn.Module):
    def __init__(self, conv, eps):
        super().__init__()
        self.proj, self.norm = conv, nn.LayerNorm(conv.out_channels, eps=eps)


class Attention(nn.Module):
    def __init__(self, width, heads, reduction, eps):
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = None
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x, size):
        shorter = x if self.sr is None else self.norm(rows(self.sr(maps(x, size))))
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        packed = self.kv(shorter).unflatten(2, (2, self.heads, -1))  # keys first, then values
        key, value = packed[:, :, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class DWConv(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, 1, 1, groups=width)


class Mlp(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.fc1 = nn.Linear(width, width * ratio)
        self.dwconv = DWConv(width * ratio)
        self.fc2 = nn.Linear(width * ratio, width)

    def forward(self, x, size):
        x = rows(self.dwconv.dwconv(maps(self.fc1(x), size)))
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    def __init__(self, width, heads, reduction, ratio, eps, inner_eps):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn, self.mlp = Attention(width, heads, reduction, inner_eps), Mlp(width, ratio)

    def forward(self, x, size):
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class NvlabsEncoder(Encoder):
    """MiT with NVlabs' names; `eps` is that of blocks and stages, which they set to 1e-6."""

    def __init__(self, *args, eps=1e-5, **kwargs):
        self.eps = eps
        super().__init__(*args, **kwargs)

    def add_stage(self, stage, conv, width, ratio):
        reduction, heads = self.reductions[stage], self.heads[stage]
        setattr(self, f"patch_embed{stage + 1}", PatchEmbed(conv, 1e-5))
        blocks = [
            Block(width, heads, reduction, ratio, self.eps, 1e-5) for _ in range(self.depths[stage])
        ]
        setattr(self, f"block{stage + 1}", nn.ModuleList(blocks))
        setattr(self, f"norm{stage + 1}", nn.LayerNorm(width, eps=self.eps))

    def forward(self, x):
        found = []
        for stage in range(1, 1 + len(self.depths)):
            embed = getattr(self, f"patch_embed{stage}")
            x = embed.proj(x)
            size = x.shape[2:]
            x = embed.norm(rows(x))
            for block in getattr(self, f"block{stage}"):
                x = block(x, size)
            x = maps(getattr(self, f"norm{stage}")(x), size)
            found.append(x)
        return found


class NvlabsClassifier(NvlabsEncoder):
    """mit_b*.pth."""

    def __init__(self, widths, *args, classes, **kwargs):
        super().__init__(widths, *args, **kwargs)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.head(super().forward(x)[-1].mean((2, 3)))


class Projection(nn.Module):
    def __init__(self, width, decoder):
        super().__init__()
        self.proj = nn.Linear(width, decoder)


class ConvModule(nn.Module):
    """mmcv's: a 1x1 convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def upsampled(x, like):
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class NvlabsHead(nn.Module):
    def __init__(self, widths, decoder, classes):
        super().__init__()
        self.stages = len(widths)
        for stage, width in enumerate(widths, 1):
            setattr(self, f"linear_c{stage}", Projection(width, decoder))
        self.linear_fuse = ConvModule(decoder * len(widths), decoder)
        self.linear_pred = nn.Conv2d(decoder, classes, 1)
        self.conv_seg = nn.Conv2d(128, classes, 1)  # inherited, in the files, never used

    def forward(self, found):
        parts = []
        for stage, x in enumerate(found, 1):
            linear = getattr(self, f"linear_c{stage}").proj
            parts.append(upsampled(maps(linear(rows(x)), x.shape[2:]), found[0]))
        return self.linear_pred(self.linear_fuse(torch.cat(parts[::-1], 1)))


# --------------------------------------------------------------------------------- mmsegmentation


class MmsegAttention(nn.Module):
    def __init__(self, width, heads, reduction, eps):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.sr = None
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x, size):
        shorter = x if self.sr is None else self.norm(rows(self.sr(maps(x, size))))
        return self.attn(x, shorter, shorter)[0]


class MmsegFFN(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        wide = width * ratio
        self.layers = nn.Sequential(
            nn.Conv2d(width, wide, 1),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GELU(),
            nn.Dropout(0),
            nn.Conv2d(wide, width, 1),
            nn.Dropout(0),
        )

    def forward(self, x, size):
        return rows(self.layers(maps(x, size)))


class MmsegBlock(nn.Module):
    def __init__(self, width, heads, reduction, ratio, eps):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = MmsegAttention(width, heads, reduction, eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.ffn = MmsegFFN(width, ratio)

    def forward(self, x, size):
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn(self.norm2(x), size)


class MmsegPatchEmbed(nn.Module):
    def __init__(self, conv, eps):
        super().__init__()
        self.projection, self.norm = conv, nn.LayerNorm(conv.out_channels, eps=eps)


class MmsegEncoder(Encoder):
    """MiT with mmsegmentation's names."""

    def __init__(self, *args, eps=1e-5, **kwargs):
        self.eps = eps
        super().__init__(*args, **kwargs)

    def add_stage(self, stage, conv, width, ratio):
        if stage == 0:
            self.layers = nn.ModuleList()
        blocks = nn.ModuleList(
            MmsegBlock(width, self.heads[stage], self.reductions[stage], ratio, self.eps)
            for _ in range(self.depths[stage])
        )
        norm = nn.LayerNorm(width, eps=self.eps)
        self.layers.append(nn.ModuleList([MmsegPatchEmbed(conv, self.eps), blocks, norm]))

    def forward(self, x):
        found = []
        for embed, blocks, norm in self.layers:
            x = embed.projection(x)
            size = x.shape[2:]
            x = embed.norm(rows(x))
            for block in blocks:
                x = block(x, size)
            x = maps(norm(x), size)
            found.append(x)
        return found


class MmsegHead(nn.Module):
    def __init__(self, widths, decoder, classes):
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(width, decoder) for width in widths)
        self.fusion_conv = ConvModule(decoder * len(widths), decoder)
        self.conv_seg = nn.Conv2d(decoder, classes, 1)

    def forward(self, found):
        parts = [upsampled(conv(x), found[0]) for conv, x in zip(self.convs, found, strict=True)]
        return self.conv_seg(self.fusion_conv(torch.cat(parts, 1)))


class Segmentor(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.decode_head = backbone, head

    def forward(self, x):
        return self.decode_head(self.backbone(x))


def shaken(model, seed=0):
    """Weights of any size, and norms that are no identities: no mix-up stays unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.tanh())
        elif tensor.ndim == 1 and "norm" in name + name.replace("bn", "norm"):
            tensor.copy_(name.endswith("weight") + 0.3 * noise)
        elif tensor.ndim == 1:
            tensor.copy_(0.2 * noise)
        else:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model.eval()


def nvlabs(size, classes, seed=0, **more):
    encoder = {key: value for key, value in size.items() if key != "decoder"}
    head = NvlabsHead(size["widths"], size["decoder"], classes)
    return shaken(Segmentor(NvlabsEncoder(**encoder, **more), head), seed)


def mmseg(size, classes, seed=0, *, is_inert=False, **more):
    """With `is_inert`, batch norm keeps what the ReLUs see away from zero, on either side."""
    encoder = {key: value for key, value in size.items() if key != "decoder"}
    head = MmsegHead(size["widths"], size["decoder"], classes)
    model = shaken(Segmentor(MmsegEncoder(**encoder, **more), head), seed)
    if is_inert:
        for conv in head.convs:
            conv.bn.weight.data *= 0.1
            conv.bn.bias.data = torch.where(torch.arange(size["decoder"]) % 5 == 0, -8.0, 8.0)
    return model


def mit(size, classes, seed=0, **more):
    encoder = {key: value for key, value in size.items() if key != "decoder"}
    return shaken(NvlabsClassifier(**encoder, classes=classes, **more), seed)
