"""`finetune demo`: a page on which people drop pictures and see what a model finds.

`app` is the page and its server, and a Space's app.py too; `answers` says what a picture becomes;
viewer.html, viewer.css and viewer.js draw it in the browser. The server keeps nothing of a
picture but files, which are deleted after a while: opacity, single classes and confidence are the
browser's work.
"""
