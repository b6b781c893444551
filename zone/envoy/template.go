package envoy

func (g *generator) template() {}
