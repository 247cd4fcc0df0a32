"""`SampleData` of the test host: registered samples, opened from local files only."""

import os
import shutil
import urllib.parse
import urllib.request

import slicer


class SampleDataSource:
    """One registered sample; single values become lists of one."""

    def __init__(self, sampleName, uris, fileNames, nodeNames=None, thumbnailFileName=None, loadFileTypes=None,
                 loadFiles=None, loadFileProperties=None, checksums=None, customDownloader=None):
        def listOf(value, count):
            return [value] * count if not isinstance(value, (list, tuple)) else list(value)
        self.sampleName, self.thumbnailFileName = sampleName, thumbnailFileName
        self.customDownloader, self.loadFileProperties = customDownloader, loadFileProperties or {}
        self.uris = listOf(uris, 1)
        count = len(self.uris)
        self.fileNames, self.nodeNames = listOf(fileNames, count), listOf(nodeNames, count)
        self.checksums, self.loadFileTypes = listOf(checksums, count), listOf(loadFileTypes, count)
        self.loadFiles = listOf(loadFiles, count)
        if thumbnailFileName and not os.path.isfile(thumbnailFileName):
            raise ValueError(f"{sampleName}: there is no thumbnail {thumbnailFileName}")
        if len({count, *(len(entry) for entry in (self.fileNames, self.nodeNames, self.checksums))}) != 1:
            raise ValueError(f"{sampleName}: uris, fileNames, nodeNames and checksums must be equally many")


class SampleDataLogic:
    """Registration and opening of samples."""

    def __init__(self, logMessage=None):
        self._logMessage = logMessage

    @staticmethod
    def registerCustomSampleDataSource(category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
                                       customDownloader=None, thumbnailFileName=None, loadFileTypes=None,
                                       loadFiles=None, loadFileProperties=None, checksums=None):
        sources = slicer.modules.sampleDataSources.setdefault(category, [])
        if all(source.sampleName != sampleName for source in sources):
            sources.append(SampleDataSource(sampleName, uris, fileNames, nodeNames, thumbnailFileName, loadFileTypes,
                                            loadFiles, loadFileProperties, checksums, customDownloader))

    def sourceForSampleName(self, sampleName):
        return next((source for sources in slicer.modules.sampleDataSources.values() for source in sources
                     if source.sampleName == sampleName), None)

    def downloadFromSource(self, source):
        """Copy the files of a sample into the cache, check them and load them; return nodes or paths."""
        if source.customDownloader is not None:
            return source.customDownloader(source)
        entries = zip(source.uris, source.fileNames, source.nodeNames, source.checksums, source.loadFileTypes,
                      source.loadFiles, strict=True)
        return [self._open(source, *entry) for entry in entries]

    def _open(self, source, uri, fileName, nodeName, checksum, fileType, load):
        path = os.path.join(slicer.app.cachePath, fileName)
        parsed = urllib.parse.urlparse(uri)
        if parsed.scheme != "file":
            raise RuntimeError(f"The test host opens no network addresses: {uri}")
        shutil.copyfile(urllib.request.url2pathname(parsed.path), path)
        if checksum:
            algorithm, digest = slicer.util.extractAlgoAndDigest(checksum)
            if slicer.util.computeChecksum(algorithm, path) != digest:
                raise ValueError(f"{fileName} does not have the registered checksum")
        if load is False:
            return path
        return slicer.util.loadNodeFromFile(path, fileType, {**source.loadFileProperties,
                                                             **({"name": nodeName} if nodeName else {})})

    def downloadSamples(self, sampleName):
        source = self.sourceForSampleName(sampleName)
        if source is None:
            raise ValueError(f"There is no sample named {sampleName}")
        return self.downloadFromSource(source)

    def downloadSample(self, sampleName):
        return self.downloadSamples(sampleName)[0]


def downloadSample(sampleName):
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName):
    return SampleDataLogic().downloadSamples(sampleName)
