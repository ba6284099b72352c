"""A trained model behind HTTP: many clients at once, OpenAI's protocol, and a page for a browser.

engine        one thread that owns the model: texts join and leave between two tokens
sequence      one of these texts
protocol      what a request may say, and the form of an answer
answers       from a request to the engine and back
app           the routes
gate          before every route: who may ask, how large a body may be, what is logged
metrics       what is counted
page.html     the page
"""
