"""The report of a prediction: one HTML file with its pictures inside, to be read without Slicer and without a network.

It names the patient only where the caller says so: whoever writes it decides what goes into `Report.patient`.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

NOT_CLINICAL = "Not for clinical use: research software, whose predictions were checked by no authority."
STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.8em; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: left; }
figure { display: inline-block; margin: .4em; } figure img { max-width: 27em; } figcaption { font-size: .85em; }
.notice { border: 2px solid #b00; padding: .5em .8em; font-weight: bold; } .warning { color: #a40; }
"""
# What is told of a model, in this order; keys of its card.
CARD = ("id", "version", "licence", "attribution", "training_data", "limits")


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        caption: what it shows.
        png: the file's contents.
    """

    caption: str
    png: bytes


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        record: contents of the prediction's result.json.
        card: contents of the model's model.json; None: the model is not installed.
        tables: {title: header and rows of texts}.
        pictures: in the order of the page.
        patient: {what: text} of who it is and what went in; empty: nothing in the report says it.
        made: when.
    """

    record: Mapping
    card: Mapping | None
    tables: Mapping[str, Sequence[Sequence[str]]]
    pictures: Sequence[Picture]
    patient: Mapping[str, str]
    made: datetime


def html(report):
    """The report as the text of an HTML file.

    Args:
        report: `Report`.

    Returns:
        str, complete in itself.
    """
    record = report.record
    title = f"PREDICTED {record['side']} tibia"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>',
        "<body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="notice">{escape(NOT_CLINICAL)}</p>',
        f"<p>Made {report.made:%Y-%m-%d %H:%M %Z} by BoneReconstruction {escape(str(record['version']))}.</p>",
        f"<p>Method: {escape(record['method'])}. Lengths are in millimetres, positions in RAS.</p>",
    ]
    if report.patient:
        parts += ["<h2>Patient and input</h2>", _pairs(report.patient)]
    if record["warnings"]:
        parts.append("<h2>Warnings</h2>")
        parts.append(_list(record["warnings"], "warning"))
    if report.pictures:
        parts += ["<h2>Pictures</h2>", *(_figure(picture) for picture in report.pictures)]
    for heading, rows in report.tables.items():
        parts += [f"<h2>{escape(heading)}</h2>", _table(rows)]
    parts += ["<h2>Model</h2>", _card(report.card, record["model"])]
    parts += ["<h2>Settings</h2>", _pairs({name: str(value) for name, value in record["settings"].items()})]
    parts += [f'<p class="notice">{escape(NOT_CLINICAL)}</p>', "</body>", "</html>", ""]
    return "\n".join(parts)


def _pairs(pairs):
    return "\n".join(["<table>", *(_row(pair, "td") for pair in pairs.items()), "</table>"])


def _table(rows):
    header, *body = rows
    return "\n".join(["<table>", _row(header, "th"), *(_row(row, "td") for row in body), "</table>"])


def _row(cells, tag):
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _list(texts, style=""):
    kind = f' class="{style}"' if style else ""
    return "\n".join(["<ul>", *(f"<li{kind}>{escape(text)}</li>" for text in texts), "</ul>"])


def _figure(picture):
    data, caption = base64.b64encode(picture.png).decode(), escape(picture.caption, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _card(card, model):
    if card is None:
        return f"<p>The card of the model {escape(model['id'])} {escape(model['version'])} was not found.</p>"
    parts = []
    for key in CARD:
        value = card[key]
        told = _list(value) if isinstance(value, list) else f"<p>{escape(value)}</p>"
        parts.append(f"<h3>{escape(key.replace('_', ' ').capitalize())}</h3>\n{told}")
    if card["version"] != model["version"]:
        parts.insert(0, f'<p class="warning">Predicted by version {escape(model["version"])} of it.</p>')
    return "\n".join(parts)
