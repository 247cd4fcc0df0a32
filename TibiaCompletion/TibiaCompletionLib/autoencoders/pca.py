"""Principal components of aligned images: the linear autoencoder of the masked tibia completion paper."""

import torch

CHUNK = 64


class Pca:
    """Mean image, orthonormal components and the standard deviation of their weights.

    Attributes:
        mean: (V,) tensor, V voxels.
        components: (r, V) tensor, orthonormal rows, largest variance first.
        deviations: (r,) tensor, standard deviation of each weight.
        noise: standard deviation of a voxel that the components leave over.
    """

    def __init__(self, mean, components, deviations, noise):
        self.mean, self.components, self.deviations, self.noise = mean, components, deviations, noise

    @classmethod
    def fitted(cls, images, rank):
        """Fit to images (N, ...), which may be of half precision; at most N - 1 components are kept."""
        flat = images.flatten(1)
        mean = _mean(flat)
        gram = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
        for rows in torch.arange(len(flat)).split(CHUNK):
            centred = flat[rows].float() - mean
            for columns in torch.arange(int(rows[0]), len(flat)).split(CHUNK):
                part = (centred @ (flat[columns].float() - mean).T).double()
                gram[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = part
                gram[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1] = part.T
        values, vectors = torch.linalg.eigh(gram)
        rank = min(rank, len(flat) - 1)
        values, vectors = values.flip(0)[:rank].clamp(min=1e-12), vectors.flip(1)[:, :rank]
        weights = (vectors / values.sqrt()).float()
        components = torch.zeros(rank, flat.shape[1], device=flat.device)
        for rows in torch.arange(len(flat)).split(CHUNK):
            components += weights[rows].T @ (flat[rows].float() - mean)
        left = (gram.trace() - values.sum()).clamp(min=0) / (len(flat) - 1) / flat.shape[1]
        return cls(mean, components, (values / (len(flat) - 1)).sqrt().float(), float(left.sqrt()))

    def truncated(self, rank):
        """The same with fewer components; what they leave out is noise."""
        dropped = float((self.deviations[rank:] ** 2).sum()) / len(self.mean)
        noise = (self.noise**2 + dropped) ** 0.5
        return Pca(self.mean, self.components[:rank], self.deviations[:rank], noise)

    def reconstructed(self, images, visible=None):
        """Encode and decode images.

        Args:
            images: (N, ...) tensor of V voxels each.
            visible: None: projected on the components; or a bool tensor of the images' shape: the weights' posterior
                mean given the visible voxels, the weights' prior being normal.

        Returns:
            Tensor of the images' shape.
        """
        centred = images.flatten(1).float() - self.mean
        if visible is None:
            return (self.mean + (centred @ self.components.T) @ self.components).view(images.shape)
        precision = torch.diag(max(self.noise, 1e-6) ** 2 / self.deviations**2)
        decoded = []
        for image, seen in zip(centred, visible.flatten(1), strict=True):
            shown = self.components * seen
            weights = torch.linalg.solve(shown @ shown.T + precision, shown @ image)
            decoded.append(self.mean + weights @ self.components)
        return torch.stack(decoded).view(images.shape)

    def tensors(self):
        """{name: tensor} for `from_tensors`."""
        noise = torch.tensor([self.noise])
        return {"mean": self.mean, "components": self.components, "deviations": self.deviations, "noise": noise}

    @classmethod
    def from_tensors(cls, tensors):
        """From what `tensors` returned."""
        return cls(tensors["mean"], tensors["components"], tensors["deviations"], float(tensors["noise"][0]))


def _mean(flat):
    total = torch.zeros(flat.shape[1], device=flat.device)
    for rows in flat.split(CHUNK):
        total += rows.float().sum(0)
    return total / len(flat)
