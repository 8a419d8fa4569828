"""`finetune demo`: a page on which people drop pictures and see a model's classes in them.

`demo` loads the models and serves the page; it is a Space's app.py too. `blocks` builds the page,
`answers` turns a picture into files and words; viewer.html, viewer.css and viewer.js draw them in
the browser. The server keeps only a picture's files, and deletes them after a while. The browser
handles opacity, single classes and confidence.
"""
