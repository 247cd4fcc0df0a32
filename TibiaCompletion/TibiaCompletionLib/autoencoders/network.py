"""The autoencoders of the masked tibia completion paper, out of MONAI's blocks: VAE and VQ-VAE with a spatial latent.

Both have the encoder and decoder of a U-Net without its skip connections, past which nothing would have to go through
the latent code.
"""

import torch
from monai.networks.blocks import Convolution, ResidualUnit, SubpixelUpsample, UpSample
from monai.networks.layers.vector_quantizer import EMAQuantizer
from torch import nn

from TibiaCompletionLib.precision import half_on_gpu

NORM = ("group", {"num_groups": 4})
ACTIVATION = "LEAKYRELU"
LOG_VARIANCE_RANGE = (-10.0, 10.0)
EMPTY = -4.0  # logit
COMMITMENT = 0.25
DECAY = 0.99
# A codeword that fewer than this many vectors choose, by the moving average of a batch, is given to another vector.
RARE = 0.05
# Of the soft assignments by which the balance of the codewords is judged, relative to the mean squared distance.
SOFTNESS = 0.1


def encoder(widths, latent):
    """Halves (N, 1, K, J, I) once for each of `widths`, down to `latent` channels."""
    layers, before = [], 1
    for width in widths:
        layers.append(ResidualUnit(3, before, width, strides=2, act=ACTIVATION, norm=NORM))
        before = width
    return nn.Sequential(*layers, Convolution(3, before, latent, kernel_size=1, conv_only=True))


def decoder(widths, latent):
    """The way back: doubles (N, latent, k, j, i) once for each of `widths`, to one channel from 0 to 1."""
    layers = [Convolution(3, latent, widths[-1], kernel_size=1, conv_only=True)]
    for width, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [
            UpSample(3, width, after, mode="nontrainable"),
            ResidualUnit(3, after, after, act=ACTIVATION, norm=NORM),
        ]
    # Full resolution is the costliest: one convolution makes the eight voxels of each coarser one.
    last = SubpixelUpsample(3, widths[0], 1, apply_pad_pool=False)
    # Most of an image is empty; begun there, half of the training is not spent on darkening it.
    nn.init.constant_(last.conv_block.bias, EMPTY)
    return nn.Sequential(*layers, last, nn.Sigmoid())


class Vae(nn.Module):
    """Variational autoencoder.

    Args:
        widths: channels after each halving, multiples of 4.
        latent: channels of the latent code.
    """

    def __init__(self, widths, latent):
        super().__init__()
        self.encoder = encoder(widths, 2 * latent)
        self.decoder = decoder(widths, latent)

    def encode(self, images):
        """(mean, log-variance) (N, latent, k, j, i) of the code of images (N, 1, K, J, I) with values in [0, 1]."""
        with half_on_gpu(images.device):
            mean, log_variance = self.encoder(images).float().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, code):
        """Images (N, 1, K, J, I) of codes (N, latent, k, j, i)."""
        with half_on_gpu(code.device):
            return self.decoder(code).float()

    def forward(self, images):
        """The images that the codes' means decode to."""
        return self.decode(self.encode(images)[0])


class VqVae(nn.Module):
    """Vector-quantised autoencoder; the codebook follows its vectors by exponential moving averages.

    Args:
        widths: channels after each halving, multiples of 4.
        latent: channels of a codeword.
        codewords: size of the codebook.
    """

    def __init__(self, widths, latent, codewords):
        super().__init__()
        self.encoder = encoder(widths, latent)
        self.decoder = decoder(widths, latent)
        self.quantizer = EMAQuantizer(3, codewords, latent, COMMITMENT, DECAY, ddp_sync=False)

    def quantized(self, images):
        """(codes, commitment loss, vectors): quantised codes, straight through, and the encoder's vectors themselves.

        In training mode the codebook moves.
        """
        with half_on_gpu(images.device):
            vectors = self.encoder(images).float()
        codes, commitment, _ = self.quantizer(vectors)
        return codes, commitment, vectors

    def decode(self, codes):
        """Images (N, 1, K, J, I) of codes (N, latent, k, j, i)."""
        with half_on_gpu(codes.device):
            return self.decoder(codes).float()

    def forward(self, images):
        """The images that the quantised codes decode to."""
        return self.decode(self.quantized(images)[0])

    def imbalance(self, vectors):
        """log K minus the entropy of the mean soft assignment to the K codewords: 0 when all are used alike, nats."""
        flat = vectors.movedim(1, -1).flatten(0, -2)
        # A copy: reviving codewords changes the codebook before the gradient is taken.
        squared = torch.cdist(flat, self.quantizer.embedding.weight.clone()).square()
        share = torch.softmax(-squared / (SOFTNESS * squared.mean().detach() + 1e-9), 1).mean(0)
        return (share * (share.clamp(min=1e-12) * len(share)).log()).sum()

    @torch.no_grad()
    def revive(self, vectors, generator):
        """Give rarely chosen codewords to random vectors of the batch, so that none stays unused for ever.

        Args:
            vectors: (N, latent, k, j, i), from `quantized`.
            generator: torch.Generator on their device.

        Returns:
            Number of codewords that were given away.
        """
        flat = vectors.detach().movedim(1, -1).flatten(0, -2)
        rare = (self.quantizer.ema_cluster_size < RARE).nonzero()[:, 0]
        chosen = torch.randint(len(flat), (len(rare),), generator=generator, device=flat.device)
        self.quantizer.embedding.weight[rare] = flat[chosen]
        self.quantizer.ema_w[rare] = flat[chosen]
        self.quantizer.ema_cluster_size[rare] = 1.0
        return len(rare)
