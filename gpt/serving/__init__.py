"""A trained model behind HTTP: many clients at once, OpenAI's protocol, and a page for a browser.

engine        one thread that owns the model: texts join and leave between two tokens
sequence      one of these texts
protocol      what a request may say, and the form of an answer
service       the model, and what a request may ask of it
tasks         from a request to the engine
answers       from the engine back to the client
app           the routes
gate          before every route: who may ask, how large a body may be, what is logged
metrics       what is counted
page.html     the page
"""
