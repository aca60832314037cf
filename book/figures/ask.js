// A question before the figure moves. The reader answers or passes on, and then has the controls; what was said stays beside them.
// The text is "question | answer | answer": the option `ask` of the directive.
export const parts = text => {
  const [question, ...answers] = text.split("|").map(part => part.trim());
  return { question, answers };
};

// The box, and what is called once with the answer, or with nothing when the reader passes on.
export const box = (make, id, text, then) => {
  const { question, answers } = parts(text);
  const choice = (label, said) => make("button", { type: "button", onclick: () => then(said) }, label);
  return make(
    "div",
    { class: "lf-ask", role: "group", "aria-labelledby": `${id}-ask` },
    make("p", { id: `${id}-ask` }, question),
    make("div", { class: "lf-buttons" }, ...answers.map(answer => choice(answer, answer)), choice("Skip", "")),
  );
};
