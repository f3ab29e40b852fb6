def test_x(served, models):
    import time
    for name in models:
        t=time.time(); s=served(models[name]); print(name, time.time()-t)
        r=s.ask("/tokenize", content="hi there"); print(r)
        s.kill(); u=s.url; t=time.time(); s.start(); print(time.time()-t, s.url==u, s.ask("/tokenize", content="hi there"))
