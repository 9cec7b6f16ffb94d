"""One function a verb: it joins the rooms below, tells a `Progress`, and knows no argv."""
