"""Stand-in for `slicer.app.coreIOManager()`: files to nodes and back through the real logics of the modules."""

import os
import zipfile

import slicer

_TYPES = {".mrb": "SceneFile", ".mrml": "SceneFile", ".seg.nrrd": "SegmentationFile", ".nrrd": "VolumeFile",
          ".nhdr": "VolumeFile", ".nii": "VolumeFile", ".nii.gz": "VolumeFile", ".mha": "VolumeFile",
          ".mhd": "VolumeFile", ".dcm": "VolumeFile", ".vtk": "ModelFile", ".vtp": "ModelFile", ".stl": "ModelFile",
          ".ply": "ModelFile", ".obj": "ModelFile", ".mrk.json": "MarkupsFile", ".fcsv": "MarkupsFile",
          ".tfm": "TransformFile", ".h5": "TransformFile", ".csv": "TableFile", ".tsv": "TableFile"}


class CoreIOManager:
    """Reads and writes nodes and scenes."""

    def __init__(self, scene, modules):
        self._scene, self._modules = scene, modules

    def fileType(self, path):
        name = os.path.basename(str(path)).lower()
        endings = sorted((ending for ending in _TYPES if name.endswith(ending)), key=len)
        return _TYPES[endings[-1]] if endings else "NoFile"

    def fileWriterFileType(self, node):
        return f"{node.GetClassName()}File"

    def loadNodes(self, fileType, properties, loadedNodes, userMessages=None):
        """Load one file; true when it was read."""
        path = properties["fileName"]
        if not os.path.exists(path):
            return False
        if fileType == "SceneFile":
            return self._loadScene(path, properties)
        node = self._load(fileType, path, properties)
        if node is None:
            return False
        if properties.get("name"):
            node.SetName(properties["name"])
        if loadedNodes is not None:
            loadedNodes.AddItem(node)
        return True

    def _load(self, fileType, path, properties):
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        if fileType == "VolumeFile":
            return self._modules.volumes.logic().AddArchetypeVolume(path, name, 1 if properties.get("labelmap") else 0)
        if fileType == "SegmentationFile":
            return self._modules.segmentations.logic().LoadSegmentationFromFile(path, True, name)
        if fileType == "ModelFile":
            return self._modules.models.logic().AddModel(path, slicer.vtkMRMLStorageNode.CoordinateSystemLPS)
        if fileType.startswith("Markups"):
            return self._scene.GetNodeByID(self._modules.markups.logic().LoadMarkups(path, name) or "")
        if fileType == "TransformFile":
            return self._modules.transforms.logic().AddTransform(path, self._scene)
        if fileType == "TableFile":
            return self._modules.tables.logic().AddTable(path, name)
        return None

    def _loadScene(self, path, properties):
        if properties.get("clear"):
            self._scene.Clear(0)
        if path.lower().endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, bool(properties.get("clear"))))
        self._scene.SetURL(path)
        return bool(self._scene.Import())

    def saveNodes(self, fileType, properties, userMessages=None):
        """Write one node, or the scene as .mrb or .mrml; true when it was written."""
        path = str(properties["fileName"])
        if fileType == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(self._scene.WriteToMRB(path)) and zipfile.is_zipfile(path)
            self._scene.SetURL(path)
            return bool(self._scene.Commit())
        node = self._scene.GetNodeByID(properties["nodeID"])
        storage = node.GetStorageNode()
        if storage is None or not storage.SupportedFileType(path):
            node.AddDefaultStorageNode(path)
            storage = node.GetStorageNode()
        if storage is None:
            return False
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(properties["useCompression"])
        return bool(storage.WriteData(node))

    def fileWriterExtensions(self, node):
        storage = node.CreateDefaultStorageNode()
        storage.UnRegister(None)
        types = storage.GetSupportedWriteFileTypes()
        return tuple(types.GetValue(index) for index in range(types.GetNumberOfValues()))

    def extractKnownExtension(self, path, node):
        extensions = (entry[entry.rfind("(") + 1:-1] for entry in self.fileWriterExtensions(node))
        matching = [extension for extension in extensions if str(path).lower().endswith(extension)]
        return max(matching, key=len, default="")

    def exportNodes(self, nodeIDs, paths, properties, hardenTransform=False, userMessages=None):
        """Write nodes without touching their own storage nodes."""
        for nodeID, path in zip(nodeIDs, paths, strict=True):
            node = self._scene.GetNodeByID(nodeID)
            if hardenTransform and node.GetParentTransformNode() is not None:
                raise NotImplementedError("The test host does not export transformed nodes in world coordinates")
            storage = node.CreateDefaultStorageNode()
            storage.UnRegister(None)
            storage.SetFileName(str(path))
            if not storage.WriteData(node):
                return False
        return True
